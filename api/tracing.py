"""A model's own code, run without storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..planner.errors import InputError
from ..planner.model import Model
from ..planner.request import Request
from ..planner.workload import Method
from .asking import as_model, request
from .configuring import checkpointed

if TYPE_CHECKING:
    from ..strategies.traced import Traced


def trace(
    model: str | Model,
    *,
    micro_batch: int = 1,
    micro_steps: int = 1,
    checkpointing: str | int = "none",
    attention: str = "flash",
    loss: str = "full",
    precision: str = "bf16",
    wanted: Request | None = None,
    **options: Any,
) -> Traced:
    """Run the model's own code on tensors without storage, and follow what is alive; needs torch and transformers.

    Args:
        model: as in `plan`.
        micro_batch: sequences per micro-step.
        micro_steps: 2 accumulates gradients over two micro-steps.
        checkpointing: "none", "full", or how many layers.
        attention: flash or eager.
        loss: full or chunked.
        precision: bf16, fp16 or fp32, of all states.
        wanted: a finished request, instead of options.
        options: seq_len, method, lora_rank and lora_targets, as in `plan`.

    Raises:
        InputError: a package is missing, or this model cannot be traced; the message says which operator and why.
    """
    from ..planner.trace import trace as run
    from ..strategies.traced import Traced, subject_of

    loaded = as_model(model)
    chosen = wanted or request(**options)
    chosen.check(loaded)
    layers, on_host = checkpointed(checkpointing, loaded)
    if on_host:
        raise InputError(f"--checkpointing: got {checkpointing}; a trace has no host; leave -offload out")
    subject = subject_of(
        loaded,
        seq_len=chosen.seq_len,
        micro_batch=micro_batch,
        micro_steps=micro_steps,
        method=(chosen.methods[0] if chosen.methods else Method.FULL).value,
        rank=chosen.lora_rank,
        targets=chosen.lora_targets,
        checkpointed=layers,
        attention=attention,
        loss=loss,
        precision=precision,
    )
    return Traced(subject=subject, trace=run(subject))
