"""Amounts of memory as a small polynomial in the batch: what every closed form of this folder is written in.

Symbols: s sequence length, b micro-batch (sequences), T = s*b tokens, e bytes of one element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..computation import Adapters, AttentionImplementation, Computation, effective_attention
from ..model import Model

FP32 = 4  # bytes
INT64 = 8  # bytes: indices
BOOL = 1  # bytes: masks of dropout and of attention


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes = per_token * T + per_pair * b * s^2 + fixed.

    >>> (Kept(per_token=10) + Kept(per_pair=2, fixed=24)).bytes(seq_len=4, micro_batch=3)  # 10*12 + 2*3*16 + 24
    240
    """

    per_token: int = 0
    per_pair: int = 0  # for each pair of tokens of one sequence: attention scores, masks
    fixed: int = 0

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            self.per_token + other.per_token,
            self.per_pair + other.per_pair,
            self.fixed + other.fixed,
        )

    def bytes(self, seq_len: int, micro_batch: int) -> int:
        """The amount for one micro-batch."""
        return (self.per_token + self.per_pair * seq_len) * seq_len * micro_batch + self.fixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The part of a model and a computation that decides what one of its layers keeps."""

    hidden: int  # h
    element: int  # e: bytes of an activation
    eager: bool  # materialised scores
    adapters: Adapters | None  # None: every weight is trained
    fused: bool = False  # norms and gated activations keep what one kernel each needs
    keeps_inputs: bool = False  # frozen layers keep what they read
    sequence_shards: int = 1  # ranks over which norms and residuals are cut
    family: str = ""  # transformers' model_type
    quantized: bool = False  # linear layers in NF4
    padded: bool = False  # every attention reads a mask

    @property
    def plain(self) -> bool:
        """transformers' own kernels, all of a layer on one rank."""
        return not self.fused and not self.keeps_inputs and self.sequence_shards == 1

    @property
    def full(self) -> bool:
        """Every weight is trained, so every input of a weight is kept for its gradient."""
        return self.adapters is None

    def trained(self, amount: int) -> int:
        """An amount that is kept for the gradient of a weight of the base model only."""
        return amount if self.full else 0


@lru_cache(maxsize=1024)
def recipe(model: Model, computation: Computation) -> Recipe:
    """What a computation means for the layers of a model."""
    return Recipe(
        hidden=model.hidden,
        element=computation.precision.bytes,
        eager=effective_attention(model, computation.attention) is AttentionImplementation.EAGER,
        adapters=computation.adapters,
        fused=computation.kernels.fused,
        keeps_inputs=computation.quantized and computation.kernels.quantized_input,
        sequence_shards=computation.kernels.sequence_shards,
        family=model.family,
        quantized=computation.quantized,
        padded=computation.padded,
    )
