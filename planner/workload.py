"""What must be trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .model import Model


class Method(Enum):
    """What is trained, from the most to the least faithful."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Precision(Enum):
    """Type of weights and activations on the GPU."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is Precision.FP32 else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user says of a whole run; None is left to configs/run.toml."""

    eval_every: int | None = None  # optimizer steps between evaluations
    eval_tokens: int | None = None  # of one evaluation
    checkpoint_every_s: float | None = None
    storage_bytes_per_s: float | None = None  # of the whole cluster
    mtbf_gpu_hours: float | None = None
    grid_kgco2_per_kwh: float | None = None  # None: emissions are not computed
    pue: float | None = None
    power_kw_per_node: float | None = None  # that a machine of the user's draws
    failures: float = 1.0  # and interruptions: times as often as assumed
    spot_interruption_h: float | None = None  # hours between interruptions of one spot node


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model and the data it is to see; sequences are packed to ``seq_len``."""

    model: Model
    tokens: int
    seq_len: int
    global_batch: int  # sequences per optimizer step
    run: RunOptions = field(default=RunOptions(), hash=False)  # compared, but no part of the key of hot caches

    @property
    def steps(self) -> int:
        """Optimizer steps of the run, rounded up."""
        return -(-self.tokens // (self.seq_len * self.global_batch))
