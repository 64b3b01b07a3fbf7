"""In which type gradients are summed over micro-steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Ledger
from ..planner.transform import Setting
from ..planner.workload import Precision


@dataclass(frozen=True, slots=True)
class GradientAccumulation:
    """Sums in fp32 lose nothing over many micro-steps; sums in 16 bit are smaller.

    Without it stage 2 takes the smaller of the two, and every other stage sums in the training precision. The bytes are
    written by `Zero` and `OffloadOptimizer`.

    Source:
        DeepSpeed 0.19.8 runtime/config.py, ``data_types.grad_accum_dtype``. Memory model §G1, §G2.

    >>> GradientAccumulation(Precision.FP32).name
    'grad-accum-fp32'
    """

    kind: Precision
    rank = 6

    @property
    def name(self) -> str:
        """As typed after --require."""
        return f"grad-accum-{self.kind.value}"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"gradient_accumulation": self.kind.value}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting; the compatibility table names the precisions and stages."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Note the type and its key."""
        return replace(ledger, accumulation=self.kind).keys(data_types={"grad_accum_dtype": self.kind.value})
