"""The batch triangle: global batch = micro-batch x accumulation x GPUs; who fills what is open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from .resolving import Asked

TOTAL, MICRO, STEPS = "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"
LARGEST_MICRO_BATCH, LARGEST_BATCH = 2**16, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The three sizes, who filled what was open, and why DeepSpeed refuses them."""

    micro: int
    steps: int
    gpus: int
    refused: str = ""
    mended: int = 0  # a global batch that fits, where this one is refused
    filled: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Sequences of one optimizer step."""
        return self.micro * self.steps * self.gpus


def batch_of(given: Mapping[str, Any], autos: frozenset[str], asked: Asked) -> Batch:
    """The three sizes.

    Args:
        given: as written; None where they are absent or "auto".
        autos: which of them are "auto".
        asked: what the training script says.

    Raises:
        InputError: --micro-batch or --global-batch contradict the file, or what is left open does not divide.

    Source:
        DeepSpeed 0.19.8 runtime/config.py, ``_set_batch_related_parameters`` and ``_batch_assertion``; transformers
        5.23.0 ``trainer_config_process``.
    """
    total, micro, steps = given[TOTAL], given[MICRO], given[STEPS]
    _agree("--micro-batch", asked.micro_batch, micro, MICRO)
    _agree("--global-batch", asked.global_batch, total, TOTAL)
    if steps is None and STEPS not in autos:
        steps = _absent_steps(total, micro, asked.gpus, hf=bool(autos))
    found = _filled(total, micro, steps, asked)
    refused = _refused(total, found)
    if (micro is not None and not 1 <= micro <= LARGEST_MICRO_BATCH) or found.total > LARGEST_BATCH:
        raise InputError(
            f"{MICRO}: out of range, got {micro}; allowed are 1 to {LARGEST_MICRO_BATCH:,} and a global batch up to "
            f"{LARGEST_BATCH:,}; write a smaller one"
        )
    filled = {
        name: (number, how)
        for name, value, number, how in (
            (TOTAL, total, found.total, "micro-batch x accumulation x GPUs"),
            (MICRO, micro, found.micro, "--micro-batch" if asked.micro_batch else "what is left, else 1"),
            (STEPS, given[STEPS], found.steps, "global batch / (micro-batch x GPUs)"),
        )
        if value is None
    }
    return Batch(
        micro=found.micro, steps=found.steps, gpus=asked.gpus, refused=refused, mended=found.total, filled=filled
    )


def _agree(option: str, wanted: int | None, written: int | None, name: str) -> None:
    if wanted is not None and written is not None and wanted != written:
        raise InputError(f"{option} {wanted}: the file says {name} {written}; drop {option}, or change the file")


def _absent_steps(total: int | None, micro: int | None, gpus: int, *, hf: bool) -> int | None:
    """Accumulation that nobody wrote: what is left in DeepSpeed, 1 in accelerate; None where no size is there."""
    if total is None and micro is None and not hf:
        return None
    return max(1, total // (micro * gpus)) if total is not None and micro is not None and not hf else 1


def _filled(total: int | None, micro: int | None, steps: int | None, asked: Asked) -> Batch:
    """What is open, from what is not."""
    gpus = asked.gpus
    if total is None and steps is not None:
        size = micro or asked.micro_batch or max(1, asked.sequences // (steps * gpus))
        batch = Batch(micro=size, steps=steps, gpus=gpus)
        _agree("--global-batch", asked.global_batch, batch.total, f"{MICRO} x {STEPS} x {gpus} GPUs, that is,")
        return batch
    wanted = asked.sequences if total is None else total
    if steps is None:
        size = micro or asked.micro_batch or 1
        if total is None and wanted % (size * gpus):
            fits = max(1, round(wanted / (size * gpus))) * size * gpus
            raise InputError(
                f"global batch {wanted} is not micro-batch {size} x {gpus} GPUs x n; "
                f"use for example --global-batch {fits}"
            )
        return Batch(micro=size, steps=max(1, wanted // (size * gpus)), gpus=gpus)
    return Batch(micro=micro or asked.micro_batch or max(1, wanted // (steps * gpus)), steps=steps, gpus=gpus)


def _refused(total: int | None, found: Batch) -> str:
    """DeepSpeed's assertion, with numbers."""
    if total is None or total == found.total:
        return ""
    return f"{total} is not {found.micro} per GPU x {found.steps} micro-steps x {found.gpus} GPUs = {found.total}"
