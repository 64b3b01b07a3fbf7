"""How a model gets into ZeRO-3's partitions: built in them, or whole on every GPU first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Ledger
from ..planner.transform import Setting
from ..planner.whole_model import with_whole_model


@dataclass(frozen=True, slots=True)
class WithoutZeroInit:
    """The script builds the model before DeepSpeed knows of it: every rank has it whole, in RAM and then on its GPU.

    transformers' Trainer builds it inside zero.Init wherever the configuration says stage 3; a script of one's own must
    make an ``HfDeepSpeedConfig`` before ``from_pretrained``.

    >>> WithoutZeroInit().name
    'no-zero-init'
    """

    rank = 70
    name = "no-zero-init"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"zero_init": False}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting; the compatibility table names the stages."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Charge the whole model at start-up."""
        return with_whole_model(replace(ledger, zero_init=False), setting)
