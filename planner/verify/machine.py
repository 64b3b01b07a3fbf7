"""The machine at hand: how many ranks it can run, on what, and how much is free. No library of it is loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass

from ..catalog import find_gpu
from ..errors import InputError
from ..units import MIB

NEEDED = ("torch", "deepspeed", "transformers", "accelerate", "peft", "bitsandbytes", "psutil")
SMALLEST = 2  # ranks: sharding shows from two on, and a CPU runs them as slowly as it must


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU."""

    name: str  # as its driver says
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What engines can use."""

    device: str  # cpu or cuda
    cores: int
    free_ram_bytes: int
    cards: tuple[Card, ...] = ()

    @property
    def most_ranks(self) -> int:
        """Processes that a plan is verified with, unless told otherwise: one a GPU; two on a CPU."""
        return len(self.cards) or SMALLEST

    @property
    def free_gpu_bytes(self) -> int:
        """On the fullest GPU."""
        return min((card.free_bytes for card in self.cards), default=0)

    @property
    def text(self) -> str:
        """What people read."""
        return f"{len(self.cards)} x {self.cards[0].name}" if self.cards else f"the CPU, {self.cores} cores"

    @property
    def gpu(self) -> str | None:
        """The catalog's name of the GPUs; None where it has none, or where they differ."""
        names = {card.name for card in self.cards}
        return named(names.pop()) if len(names) == 1 else None


def this_machine(device: str = "auto") -> Machine:
    """What is there.

    Args:
        device: cpu, cuda, or auto: cuda where the driver lists a GPU.

    Raises:
        InputError: a package is missing, or there is no GPU where one was asked for.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(
            f"verify: {' and '.join(missing)} not installed; a verification runs the job itself; "
            "pip install 'trainplan[train]', or use `trainplan explain`, which does without"
        )
    import psutil

    found = cards() if device != "cpu" else ()
    if device == "cuda" and not found:
        raise InputError("--device cuda: the driver lists no GPU (nvidia-smi); allowed here is cpu; use --device cpu")
    return Machine(
        device="cuda" if found else "cpu",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        free_ram_bytes=int(psutil.virtual_memory().available),
        cards=found,
    )


def cards() -> tuple[Card, ...]:
    """The GPUs that processes will see, by nvidia-smi: a context of ours would take memory of them."""
    rows = nvidia_smi("--query-gpu=name,memory.total,memory.used")
    found = [
        Card(name=name, total_bytes=int(total) * MIB, free_bytes=(int(total) - int(used)) * MIB)
        for name, total, used in (row for row in rows if len(row) == 3)
        if total.isdigit() and used.isdigit()
    ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(found)
    chosen = [part.strip() for part in visible.split(",") if part.strip()]
    if all(part.isdigit() for part in chosen):
        return tuple(found[int(part)] for part in chosen if int(part) < len(found))
    return tuple(found[: len(chosen)])  # by uuid: the kinds of one machine are the same


def named(driver_name: str) -> str | None:
    """The catalog's GPU of a driver's name; None where it has none.

    >>> named("NVIDIA A100-SXM4-80GB"), named("no such card")
    ('a100-80', None)
    """
    try:
        return find_gpu(driver_name).name
    except InputError:
        return None


def nvidia_smi(query: str) -> list[list[str]]:
    """Rows of `nvidia-smi --query-...=... --format=csv,noheader,nounits`; none where it is not installed or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run(
        [program, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False
    )
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else []


def parse_nvidia_smi(text: str) -> list[list[str]]:
    """Cells of nvidia-smi's CSV.

    >>> parse_nvidia_smi("NVIDIA H100 80GB HBM3, 81559, 4\\n")
    [['NVIDIA H100 80GB HBM3', '81559', '4']]
    """
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
