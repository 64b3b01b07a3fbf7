"""torchrun: started once on every node."""

from __future__ import annotations

from ..job import Job
from ..shell import bash, beside, comments, environment, joined, model_of, rendezvous, script, train_words
from ..start import Emitted, Start

TITLE, NAME = "torchrun", "torchrun.sh"
GRACE_S = 300  # what train.py has, told to stop, to end a micro-step and save; torchrun's default is 30
AFTER_GRACE_S = 60  # more that a scheduler must leave: torchrun itself ends its processes first
GRACE = f"--shutdown-timeout={GRACE_S}"


def emit(job: Job, start: Start) -> Emitted:
    """A script; several nodes meet at MASTER_ADDR."""
    first = (
        (
            f"start it on each of the {job.machines.nodes} nodes, with the same MASTER_ADDR, the name of one of them; "
            "each must see this folder",
        )
        if job.several_nodes
        else ()
    )
    words = [f"exec torchrun {GRACE} {launch(job)}", *train_words(start.data, model_of(job, start))]
    lines = [*beside(job, start), *rendezvous(job, rank=False), *environment(job), joined(words)]
    where = "MASTER_ADDR=FIRST_NODE " if job.several_nodes else ""
    return Emitted(
        files={NAME: script(comments(job, TITLE, first=first), lines)},
        command=f"{where}{bash(job, start, NAME)}",
        first=first,
    )


def launch(job: Job, *, run: str = "trainplan") -> str:
    """torchrun's own options, as words of a shell; several nodes agree on their ranks at MASTER_ADDR.

    Source:
        torch 2.13.0, torch.distributed.run: rdzv-id is any name that the nodes of one run share.
    """
    m = job.machines
    if not job.several_nodes:
        return f"--standalone --nproc-per-node={m.gpus_per_node}"
    where = '--rdzv-backend=c10d "--rdzv-endpoint=$MASTER_ADDR:$MASTER_PORT"'
    return f"--nnodes={m.nodes} --nproc-per-node={m.gpus_per_node} --rdzv-id={run} {where}"
