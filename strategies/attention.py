"""Which attention kernel runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.computation import AttentionImplementation, effective_attention
from ..planner.ledger import Ledger
from ..planner.transform import Setting


@dataclass(frozen=True, slots=True)
class Attention:
    """Flash keeps q, k, v, output and one number per row; eager keeps s x s scores. Soft-caps and sinks force eager.

    Source:
        transformers 5.23.0 attn_implementation; traced op by op. Memory model §A1.
    """

    implementation: AttentionImplementation = AttentionImplementation.FLASH
    rank = 40

    @property
    def name(self) -> str:
        """As typed after --require."""
        return f"{self.implementation.value}-attention"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"attention": self.implementation.value}

    def accepts(self, setting: Setting) -> str | None:
        """Flash is refused where the model needs its scores."""
        if effective_attention(setting.model, self.implementation) is not self.implementation:
            return f"{setting.model.name} caps its scores or has attention sinks, which the flash kernel cannot do"
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Choose the kernel."""
        return replace(ledger, computation=replace(ledger.computation, attention=self.implementation))
