"""Full or chunked cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Ledger
from ..planner.transform import Setting

DEFAULT_CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class ChunkedLoss:
    """Logits exist for one chunk of tokens at a time; the training script must use a fused linear cross-entropy.

    Source:
        Hsu et al. 2024, Liger Kernel §3.2 (arXiv:2410.10989): gradients of the head are made in the forward pass.
        Memory model §A5.
    """

    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    rank = 41
    name = "chunked-loss"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"loss": "chunked"}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Bound the logits."""
        return replace(ledger, computation=replace(ledger.computation, loss_chunk=self.chunk_tokens))
