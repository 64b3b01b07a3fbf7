"""Launch targets by name: each a pure function of a job and how it is started. Loaded when used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InputError, did_you_mean

if TYPE_CHECKING:
    from ..job import Job
    from ..start import Emitted, Start

DEFAULT = "deepspeed"


@dataclass(frozen=True, slots=True)
class Target:
    """What a target is, and whether the job's own train.py is what it runs."""

    title: str
    runs_train_py: bool = True


TARGETS: Mapping[str, Target] = {
    "deepspeed": Target("DeepSpeed's launcher"),
    "torchrun": Target("torchrun"),
    "slurm": Target("Slurm"),
    "skypilot": Target("SkyPilot"),
    "kubernetes": Target("Kubeflow Trainer"),
    "accelerate": Target("Accelerate"),
    "transformers": Target("Hugging Face's Trainer", runs_train_py=False),
    "axolotl": Target("Axolotl", runs_train_py=False),
    "llamafactory": Target("LLaMA-Factory", runs_train_py=False),
}


def known_target(name: str) -> str:
    """Check a target's name.

    Raises:
        InputError: there is no such target.
    """
    cleaned = name.strip().lower()
    if cleaned not in TARGETS:
        raise InputError(
            f"--for: no target {name[:40]!r}; allowed are {', '.join(TARGETS)}{did_you_mean(cleaned[:40], TARGETS)}"
        )
    return cleaned


def emit_for(name: str, job: Job, start: Start) -> Emitted:
    """What one target needs beside the job's own files.

    Raises:
        InputError: no such target, or it cannot run the plan at all.
    """
    module = importlib.import_module(f".{known_target(name)}", __package__)
    found: Emitted = module.emit(job, start)
    return found
