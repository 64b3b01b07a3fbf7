"""LoRA: train low-rank adapters, freeze the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..planner.computation import Adapters
from ..planner.ledger import Ledger
from ..planner.states import frozen_tensors, trained_tensors
from ..planner.transform import Setting


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapters of rank r on the nn.Linear weights of the blocks: r (fan_in + fan_out) trained elements each.

    The base model stays in the training precision, without gradients, master copy or states. DeepSpeed casts the
    adapters to the training precision (peft alone would keep them in fp32).

    Source:
        Hu et al. 2021 §4 (arXiv:2106.09685); peft 0.21.2 LoraConfig(target_modules="all-linear"); counts compared with
        peft. Memory model §W2.
    """

    adapters: Adapters = field(default_factory=Adapters)
    rank = 10
    name = "lora"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"method": "lora"}

    def accepts(self, setting: Setting) -> str | None:
        """Some weight must be adapted."""
        if not any(self.adapters.adapted(block) for block, _ in setting.model.distinct_blocks):
            targets = ", ".join(self.adapters.targets) or "all-linear"
            return f"no nn.Linear of {setting.model.name} is among the targets {targets}"
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Freeze the model, train the adapters."""
        return replace(
            ledger,
            trainable=trained_tensors(setting.model, self.adapters),
            frozen=frozen_tensors(setting.model),
            computation=replace(ledger.computation, adapters=self.adapters),
        )
