"""A model that is whole on every GPU before ZeRO-3 cuts it: what start-up then needs at least."""

from __future__ import annotations

from .gathering import cut_tensors
from .ledger import Device, Entry, Item, Ledger, Phase
from .states import quantized_tensors
from .transform import Setting


def with_whole_model(ledger: Ledger, setting: Setting) -> Ledger:
    """Charge the whole model at start-up, where it exceeds what start-up holds later: the two are never there at once.

        e (N + F + Q + ceil(largest tensor / d)) + scales        Q: elements that hold NF4 weights

    Its last 16-bit weight lies beside the 4-bit ones as it is quantised, before there are adapters: the upper bound.

    Source:
        DeepSpeed 0.19.8 runtime/engine.py, ``_configure_distributed_model``: the module moves to the device at stage 3
        too; partition_parameters.py cuts it tensor by tensor; walked. bitsandbytes 0.50.2 nn/modules.py,
        ``Params4bit._quantize``. Memory model §W7.
    """
    e, tensors = ledger.computation.precision.bytes, cut_tensors(ledger, setting.model)
    largest = -(-max(t.largest for t in tensors) // setting.world_size)
    base = e * sum(t.total for t in tensors) + ledger.bytes_of(Item.SCALES)
    linear = quantized_tensors(setting.model).largest if ledger.computation.quantized else 0
    later = ledger.without(Item.FLATTENING).by_phase(Device.GPU)[Phase.START]
    temporaries = ledger.bytes_of(Item.FLATTENING)
    size = max(temporaries, base + e * largest - later)
    upper = max(size, base + e * (linear - ledger.trainable.total) - later)
    why = "the whole model, before it is cut and anything else is there" if size > temporaries else _why(ledger)
    lines = ledger.without(Item.FLATTENING)
    return lines.plus(Entry(Item.FLATTENING, Device.GPU, size, (Phase.START,), why, upper=upper))


def _why(ledger: Ledger) -> str:
    """What the line says already."""
    return next((e.why for e in ledger.entries if e.item is Item.FLATTENING), "")
