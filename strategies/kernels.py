"""Whose implementation of layers and loss runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.computation import Kernels
from ..planner.ledger import Ledger
from ..planner.transform import Setting


@dataclass(frozen=True, slots=True)
class FrameworkKernels:
    """Fused norms and activations, sequence parallelism, another cross-entropy.

    Source:
        configs/frameworks.toml. Memory model §A1, §A5.
    """

    kernels: Kernels
    rank = 39
    name = "framework-kernels"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Choose the implementation."""
        return replace(ledger, computation=replace(ledger.computation, kernels=self.kernels))
