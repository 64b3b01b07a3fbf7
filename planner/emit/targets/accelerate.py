"""Accelerate's launcher: its configuration names ds_config.json; train.py is what it starts."""

from __future__ import annotations

from ..job import Job
from ..shell import bash, beside, comments, environment, joined, model_of, rendezvous, script, train_words
from ..start import Emitted, Start
from ..yaml_text import to_yaml

TITLE, NAME, CONFIG = "Accelerate", "accelerate.sh", "accelerate.yaml"


def emit(job: Job, start: Start) -> Emitted:
    """The launcher's configuration and a script."""
    m = job.machines
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "DEEPSPEED",
        # Precision, batch and offload stand in that file; Accelerate 1.15.0 refuses them here beside it.
        "deepspeed_config": {
            "deepspeed_config_file": "ds_config.json",
            "deepspeed_multinode_launcher": "standard",
            "zero3_init_flag": job.zero_init,
        },
        "num_machines": m.nodes,
        "num_processes": job.gpus,
        "main_training_function": "main",
    }
    launched = f"exec accelerate launch --config_file={CONFIG}{_where(job)}"
    words = [launched, *train_words(start.data, model_of(job, start))]
    lines = [*beside(job, start), *rendezvous(job), *environment(job), joined(words)]
    nodes = f"start it on each of the {m.nodes} nodes, with the same MASTER_ADDR and NODE_RANK 0 to {m.nodes - 1}"
    first = (nodes,) if job.several_nodes else ()
    told = "MASTER_ADDR=FIRST_NODE NODE_RANK=N " if job.several_nodes else ""
    return Emitted(
        files={
            CONFIG: to_yaml(config, comments(job, TITLE)),
            NAME: script(comments(job, TITLE, first=first), lines),
        },
        command=f"{told}{bash(job, start, NAME)}",
        first=first,
    )


def _where(job: Job) -> str:
    if not job.several_nodes:
        return ""
    return ' "--machine_rank=$NODE_RANK" "--main_process_ip=$MASTER_ADDR" "--main_process_port=$MASTER_PORT"'
