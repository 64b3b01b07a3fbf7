"""The exact command that starts the job. Nothing is ever put unquoted into a shell line."""

from __future__ import annotations

import shlex

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"  # the fragmentation bound assumes it


def launch_command(*, nodes: int, gpus_per_node: int, config: str, script: str = "train.py") -> str:
    """DeepSpeed's launcher on one machine, or over a hostfile.

    >>> launch_command(nodes=1, gpus_per_node=8, config="my run/ds_config.json").partition(" ")[2]
    "deepspeed --num_gpus 8 train.py --deepspeed 'my run/ds_config.json'"
    """
    where = ["--num_gpus", str(gpus_per_node)]
    if nodes > 1:
        where = ["--hostfile", "hostfile", "--num_nodes", str(nodes), *where]
    return f"{ALLOCATOR} {shlex.join(['deepspeed', *where, script, '--deepspeed', config])}"
