"""Which optimizer updates the trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..planner.ledger import ADAMW, Ledger
from ..planner.ledger import Optimizer as Kind
from ..planner.recipe import LEARNING_RATE, adamw_parameters
from ..planner.transform import Setting

BITSANDBYTES = "bitsandbytes 0.50.2: 2 x 1 B + 2 x 4 B per block of 256; walked on real optimizers"
# The step's temporaries: squares of the gradient and the update, torch 2.13.0 optim/_adafactor.py; walked
FLAT = "DeepSpeed 0.19.8 hands over flat 1-D partitions, so nothing is factored; walked on real engines"
OPTIMIZERS = {
    kind.name: kind
    for kind in (
        ADAMW,
        Kind(name="adamw-8bit", state_bytes=2.03125, deepspeed=None, source=BITSANDBYTES),
        Kind(name="paged-adamw-8bit", state_bytes=2.03125, deepspeed=None, source=BITSANDBYTES),
        Kind(
            name="lion",
            state_bytes=4,
            deepspeed="Lion",
            source="one fp32 momentum; on the host a second state that DeepSpeedCPULion allocates and never uses; "
            "walked on DeepSpeed 0.19.8 engines",
            offloaded_bytes=8,
        ),
        Kind(name="adafactor", state_bytes=4, step_bytes=8, deepspeed="Adafactor", source=FLAT),
        Kind(
            name="sgd",
            state_bytes=0,
            deepspeed="SGD",
            source="no momentum: no state; measured on DeepSpeed 0.19.8 engines",
        ),
    )
}
TRUSTED = ("AdamW", "Lion")  # DeepSpeed 0.19.8 runtime/zero/utils.py, ZERO_SUPPORTED_OPTIMIZERS


@dataclass(frozen=True, slots=True)
class Optimizer:
    """States per trained element, by optimizer; the fp32 master copy is not part of it.

    Source:
        Tensors walked on DeepSpeed 0.19.8 engines and bitsandbytes 0.50.2 optimizers. Memory model §O2.

    >>> Optimizer("lion").kind.state_bytes
    4
    """

    name: str = "adamw"
    told: Kind | None = None  # sizes of a configuration's own optimizer
    rank = 20

    @property
    def kind(self) -> Kind:
        """The optimizer's sizes."""
        return self.told or OPTIMIZERS[self.name]

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"optimizer": self.name}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Change the bytes of the optimizer states."""
        changed = replace(ledger, optimizer=self.kind)
        adapters = ledger.computation.adapters is not None
        return changed.keys(**self._keys(adapters))

    def _keys(self, adapters: bool) -> dict[str, Any]:
        kind = self.kind.deepspeed
        if kind is None:
            return {"zero_allow_untested_optimizer": True}
        params: dict[str, Any] = {"lr": LEARNING_RATE[adapters]}
        if kind == "AdamW":
            # torch_adam needs no CUDA compiler on the machine; fused has no temporaries (for-loop: 4 N / d at the step)
            params = {**adamw_parameters(adapters=adapters), "torch_adam": True, "fused": True}
        keys: dict[str, Any] = {"optimizer": {"type": kind, "params": params}}
        return keys if kind in TRUSTED else {**keys, "zero_allow_untested_optimizer": True}
