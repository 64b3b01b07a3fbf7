"""The user's own transformers model, run on tensors without storage: what is alive, when, byte by byte.

    build           config.json to modules on the meta device, without weights; adapters, 4-bit layers, checkpoints
    gpu, kernels    operators dispatch as on CUDA, where a meta tensor alone would take another path
    linear4bit      bitsandbytes' storage and temporaries
    chunked_loss    a fused linear cross-entropy's
    live            every storage from its first operator to its last reference
    run             forward, loss, backward, optimizer step
    summary         peaks by phase, and what is alive at the largest
    compare         the ledger's prediction beside it

Importing this package loads neither torch nor transformers; `trace` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from ..computation import Computation
from ..errors import InputError
from ..model import Model

NEEDED = ("torch", "transformers", "peft")
LARGEST_TOKENS = 2**40  # of one micro-batch: far above any, and products of sizes stay within 64 bits
MOST_LAYERS = 1000  # the deepest published models have 126; a minute of tracing


class Category(Enum):
    """What a storage is, for its whole life."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    PARAMETERS = "parameters"
    BUFFERS = "buffers"
    INPUTS = "inputs"
    GRADIENTS = "gradients"  # of parameters, from birth: in flight or accumulated
    OPTIMIZER = "optimizer states"
    SAVED = "saved for backward"
    TEMPORARIES = "temporaries"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is traced: one rank's training step, without DeepSpeed."""

    model: Model
    seq_len: int
    micro_batch: int
    computation: Computation
    micro_steps: int = 1
    optimizer_step: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """Storages of one kind that are alive at the peak."""

    category: Category
    module: str  # where it was made, layer numbers as *: "model.layers.*.mlp.down_proj"; "" outside the forward pass
    operation: str  # what made it: "mm"
    shape: tuple[int, ...]
    dtype: str
    count: int
    bytes: int  # of all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Bytes of one rank; phases are "forward", "backward" and "step"."""

    parameter_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    saved_after_forward_bytes: int  # at the end of the first micro-step's forward pass
    activation_peak_bytes: Mapping[str, int]  # saved and temporary alone, in forward and backward
    peak_bytes: Mapping[str, int]  # everything, in each phase
    alive: tuple[Alive, ...]  # at the overall peak, the largest first
    peak_phase: str
    peak_operation: str
    workspace_peak_bytes: int  # everything, workspaces inside attention kernels included
    reserved_peak_bytes: Mapping[str, int]  # what PyTorch's allocator would hold: "expandable" segments, or "native"
    operations: int
    seconds: float


def trace(subject: Subject) -> Trace:
    """Run one optimizer step of a model on the meta device and follow every storage.

    Args:
        subject: model, batch and computation.

    Returns:
        Peaks by phase, and what makes up the largest.

    Raises:
        InputError: torch, transformers or peft are missing; or this model cannot be traced: which operator or module,
            and why.

    Source:
        Compared with the memory events of real CPU tensors (tests/oracles/test_trace_against_allocator.py).
    """
    _check(subject)
    from .run import traced

    return traced(subject)


def _check(subject: Subject) -> None:
    missing = [name for name in _needed(subject) if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"trace: {' and '.join(missing)} not installed; a trace runs the model's own code; "
            f"pip install 'trainplan[train]', or use `trainplan estimate`, which does without"
        )
    tokens = subject.seq_len * subject.micro_batch
    if not 1 <= tokens <= LARGEST_TOKENS or min(subject.seq_len, subject.micro_batch) < 1:
        raise InputError(
            f"trace: {subject.micro_batch} x {subject.seq_len} tokens; allowed are 1 to {LARGEST_TOKENS} in one "
            f"micro-batch; give another --seq-len or --micro-batch"
        )
    if subject.model.layers > MOST_LAYERS:
        raise InputError(
            f"trace: {subject.model.name} has {subject.model.layers} layers; allowed are up to {MOST_LAYERS}; "
            f"trace it with fewer: every further layer adds the same"
        )
    if subject.micro_steps not in (1, 2):
        raise InputError(
            f"trace: got {subject.micro_steps} micro-steps; allowed are 1 and 2; a third one is like the second"
        )


def _needed(subject: Subject) -> tuple[str, ...]:
    return (*NEEDED, "bitsandbytes") if subject.computation.quantized else NEEDED
