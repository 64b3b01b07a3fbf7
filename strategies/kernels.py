"""Whose implementation of layers and loss runs: another framework's, Liger's, or what torch.compile makes."""

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


LIGER_FAMILIES = frozenset(
    {"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3", "gemma3_text"}
    | {"phi3", "olmo2"}
)


@dataclass(frozen=True, slots=True)
class LigerKernels:
    """Fused norms, rotary embeddings and dense gates save time; memory is what transformers' own modules need.

    That is an upper bound: each kernel keeps its inputs and no more. The loss is `ChunkedLoss`, a choice of its own.

    Source:
        Hsu et al. 2024 (arXiv:2410.10989); LinkedIn Liger-Kernel src/liger_kernel/transformers/monkey_patch.py, whose
        families are listed here.
    """

    rank = 44
    name = "liger"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"kernels": "liger"}

    def accepts(self, setting: Setting) -> str | None:
        """The families that Liger patches."""
        family = setting.model.family
        if family in LIGER_FAMILIES:
            return None
        return f"Liger Kernel patches {', '.join(sorted(LIGER_FAMILIES))}; {setting.model.name} is {family}"

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Price the fused kernels."""
        return replace(ledger, computation=replace(ledger.computation, liger=True))


@dataclass(frozen=True, slots=True)
class TorchCompile:
    """Pointwise chains of a module become one kernel each; memory is what eager modules need.

    Inductor keeps no more than eager code does: Llama-3.1-8B fell from 82.4 to 77.0 GiB (pytorch/torchtitan b5bcd76,
    benchmarks/, 8 H100, FSDP). DeepSpeed's hooks break the graph at every module, so nothing is taken to be fused
    across them.
    """

    rank = 45
    name = "torch-compile"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"compile": True}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Price the fused kernels."""
        return replace(ledger, computation=replace(ledger.computation, compiled=True))
