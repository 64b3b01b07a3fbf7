"""Batches of sequences of unequal length, padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Ledger
from ..planner.transform import Setting


@dataclass(frozen=True, slots=True)
class PaddedBatches:
    """Every attention reads a mask, which flash kernels refuse: keys and values of all heads, a bias in each layer.

    The plan is for the longest batch: micro-batch x the sequence length, whatever most batches are.

    Source:
        transformers 5.23.0 masking_utils.py; torch 2.13.0 transformers/cuda/sdp_utils.cpp. Memory model §A1.
    """

    rank = 38
    name = "padded-batches"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"batches": "padded"}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Hand every attention a mask."""
        return replace(ledger, computation=replace(ledger.computation, padded=True))
