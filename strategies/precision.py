"""Precision of weights, activations and gradients on the GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Ledger
from ..planner.transform import Setting
from ..planner.workload import Precision as Kind


@dataclass(frozen=True, slots=True)
class Precision:
    """bf16 and fp16 keep an fp32 master copy; fp32 is its own.

    Source:
        DeepSpeed 0.19.8 runtime/config.py (bf16, fp16 sections). Memory model §W1, §O1.

    >>> Precision(Kind.BF16).name
    'bf16'
    """

    kind: Kind
    rank = 5

    @property
    def name(self) -> str:
        """As typed after --require."""
        return self.kind.value

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"precision": self.kind.value}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Change the element size of weights, gradients and activations."""
        changed = replace(ledger, computation=replace(ledger.computation, precision=self.kind))
        keys = {} if self.kind is Kind.FP32 else {self.kind.value: {"enabled": True}}
        return changed.keys(**keys)
