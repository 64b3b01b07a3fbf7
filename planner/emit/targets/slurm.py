"""Slurm: one batch job, one torchrun on every node."""

from __future__ import annotations

import math
import shlex

from ..job import Job
from ..shell import comments, environment, given, in_folder, joined, model_of, script, told, train_words
from ..start import Emitted, Start, slug
from .torchrun import AFTER_GRACE_S, GRACE, GRACE_S, launch

TITLE, NAME = "Slurm", "job.sbatch"


def emit(job: Job, start: Start) -> Emitted:
    """A batch script. Its #SBATCH lines hold whole numbers and a name of letters, digits and dashes: none is quoted."""
    upper = job.machines.hours_upper
    cannot = () if upper is not None else ("the run's upper bound of hours is unknown: no time limit is asked for",)
    first = _first(job)
    return Emitted(
        files={NAME: script(comments(job, TITLE, cannot, first), _lines(job, start), directives=_directives(job))},
        command=f"{in_folder(start)} && {told(job, start)}sbatch {NAME}",
        cannot=cannot,
        first=first,
    )


def _first(job: Job) -> tuple[str, ...]:
    where = "partition, account and the like are your cluster's: give them to sbatch; every node must see the folder"
    again = "the time limit is the run's upper bound: submitted again, the job goes on from its last checkpoint"
    whole = (
        "it takes whole nodes (exclusive, all of their RAM): where they hold more than the plan's "
        f"{job.machines.gpus_per_node} x {job.machines.gpu}, ask for shares instead"
    )
    return (where, whole, again) if job.machines.hours_upper is not None else (where, whole)


def _directives(job: Job) -> list[str]:
    m = job.machines
    found = [
        f"--job-name={slug(job.name)}",
        f"--nodes={m.nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={m.gpus_per_node}",
        "--exclusive",
        "--mem=0",
        "--output=%x-%j.log",
        "--open-mode=append",
    ]
    if m.hours_upper is not None:
        # To the steps alone, as Slurm does without B: torchrun hands it on, and train.py saves and leaves.
        found += [f"--time={time_limit(m.hours_upper)}", f"--signal=TERM@{GRACE_S + AFTER_GRACE_S}"]
    return [f"#SBATCH {option}" for option in found]


def time_limit(hours: float) -> str:
    """Days, hours, minutes and seconds as Slurm reads them: whole hours, rounded up.

    >>> time_limit(126.65), time_limit(0.2)
    ('5-07:00:00', '0-01:00:00')
    """
    days, rest = divmod(max(1, math.ceil(hours)), 24)
    return f"{days}-{rest:02d}:00:00"


def _lines(job: Job, start: Start) -> list[str]:
    """What runs on the first node; srun starts the rest, with the limits and variables set here."""
    words = [
        f"srun --cpu-bind=none --kill-on-bad-exit=1 torchrun {GRACE} "
        f"{launch(job, run=chr(34) + '$SLURM_JOB_ID' + chr(34))}",
        *train_words(start.data, model_of(job, start)),
    ]
    lines = [
        "test -f plan.json || { echo 'plan.json: not here; go to the folder of the job before sbatch' >&2; exit 2; }",
        *given(job, start),
    ]
    if job.several_nodes:
        lines += [
            'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
            'export MASTER_ADDR="${hosts[0]}" MASTER_PORT="$((10000 + SLURM_JOB_ID % 20000))"',
        ]
    return [*lines, *_everywhere(environment(job), job), joined(words)]


def _everywhere(lines: list[str], job: Job) -> list[str]:
    """The NVMe drive must be there on every node, not on the first alone."""
    if job.nvme_path is None:
        return lines
    path = shlex.quote(job.nvme_path)
    message = "{ echo 'the plan offloads to NVMe:' " + path + " 'is no folder to write to on every node' >&2; exit 2; }"
    return [*lines[:-1], f"srun test -w {path} || {message}"]
