"""How a model gets into ZeRO-3's partitions: built in them, or whole on every GPU first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Device, Entry, Item, Ledger, Phase
from ..planner.transform import Setting


@dataclass(frozen=True, slots=True)
class WithoutZeroInit:
    """The script builds the model before DeepSpeed knows of it: every rank has it whole, in RAM and then on its GPU.

    transformers' Trainer builds it inside zero.Init wherever the configuration says stage 3; a script of one's own must
    make an ``HfDeepSpeedConfig`` before ``from_pretrained``.

        e (N + F) + e x the largest tensor's partition       on the GPU, before anything else is there

    Source:
        DeepSpeed 0.19.8 runtime/engine.py, ``_configure_distributed_model``: the module moves to the device at stage 3
        too; partition_parameters.py cuts it tensor by tensor; walked. Memory model §W7.

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
        """Charge the whole model at start-up, where it exceeds what start-up holds later."""
        e, tensors = ledger.computation.precision.bytes, (ledger.trainable, ledger.frozen)
        piece = -(-max(t.largest for t in tensors) // setting.world_size)
        whole = e * (sum(t.total for t in tensors) + piece)
        later = ledger.without(Item.FLATTENING).by_phase(Device.GPU)[Phase.START]
        size = max(ledger.bytes_of(Item.FLATTENING), whole - later)
        why = "the whole model, before it is cut and anything else is there"
        return (
            replace(ledger, zero_init=False)
            .without(Item.FLATTENING)
            .plus(Entry(Item.FLATTENING, Device.GPU, size, (Phase.START,), why))
        )
