"""A plan run for a few steps on the machine at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..planner.model import Model
from .searching import silent

if TYPE_CHECKING:
    from ..planner.verify.outcome import Verification


def verify(
    plan: str | Mapping[str, Any],
    *,
    steps: int = 3,
    processes: int | None = None,
    layers: int | None = None,
    device: str = "auto",
    model: str | Model | None = None,
    progress: Callable[[str], None] = silent,
) -> Verification:
    """Run a few steps of a plan on this machine, and compare what its engines hold with what its ledger says.

    Args:
        plan: a plan.json or its folder, or the document itself.
        steps: optimizer steps, at least 3.
        processes: ranks; by default one a GPU, or two on a CPU, and no more than the plan has.
        layers: of the model; by default as many as fit.
        device: auto, cpu or cuda.
        model: another model in the plan's place, such as a small one of its family; as in `plan`.
        progress: told what is being done.

    Raises:
        InputError: no such plan or device, a package is missing, or nothing here can run this stack.
        TooSmall: not even a shrunken model fits this machine.
        EngineFailed: a process failed.
    """
    from .verification import verified

    return verified(
        plan, steps=steps, processes=processes, layers=layers, device=device, model=model, progress=progress
    )
