"""Gathered NF4 weights that live until the loss is dropped, however few parameters ZeRO-3 keeps gathered.

bitsandbytes keeps the packed weight as an attribute of the autograd node, so that neither the end of a layer nor
checkpointing lets go of it: each GPU holds nearly the whole base, as if ZeRO-3 had not cut it.

Source:
    bitsandbytes 0.50.2 autograd/_functions.py, ``MatMul4Bit.forward``: ``ctx.tensors = (None, B)``; storages of real
    engines counted. ``nn.Linear`` saves its weight as a variable, and ZeRO-3 empties that one. Memory model §W5.
"""

from __future__ import annotations

from functools import lru_cache

from .computation import Adapters
from .gathering import padded, persistence_elements
from .gradient_flow import first_adapted, skipped, skips
from .ledger import BACKWARDS, Device, Entry, Item, Ledger, Phase
from .model import Block, Model, Parameter, ParameterKind
from .states import packed_elements
from .transform import Setting


def retained_entries(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Those of the forward pass, and of a recomputed layer, which gathers and keeps its own a second time.

    e x sum of ceil(n / (2 e d)) d        over weights of n elements whose input requires a gradient
    """
    e, elements, again = ledger.computation.precision.bytes, retained_elements(ledger, setting), _again(ledger, setting)
    why = f"{e} B x {elements:,}: bitsandbytes keeps gathered weights until the loss is dropped"
    twice = f"{e} B x {again:,}: those of the recomputed layer a second time"
    return (
        Entry(Item.RETAINED, Device.GPU, e * elements, (Phase.FORWARD, Phase.LOSS, *BACKWARDS), why),
        Entry(Item.RETAINED, Device.GPU, e * again, (Phase.RECOMPUTE,), twice),
    )


def retained_elements(ledger: Ledger, setting: Setting, *, skipping: bool | None = None) -> int:
    """Elements of gathered NF4 weights that autograd keeps, as they are stored.

    Args:
        ledger: whose weights.
        setting: its ranks.
        skipping: whether the first layer's input requires no gradient; None: as `gradient_flow.skips` says.
    """
    computation = ledger.computation
    if not computation.quantized or computation.adapters is None:
        return 0
    skipping = skips(computation) if skipping is None else skipping
    found = _required(setting.model, computation.adapters, skipping)
    return sum(_gathered(numel, ledger, setting) * count for numel, count in found)


def _again(ledger: Ledger, setting: Setting) -> int:
    """Elements of the largest layer; nothing where no layer is recomputed."""
    if not ledger.computation.quantized or not ledger.computation.checkpointed_layers:
        return 0
    blocks = (block for block, _ in setting.model.distinct_blocks)
    return max(sum(_gathered(p.numel, ledger, setting) for p in _linear(block)) for block in blocks)


def _gathered(numel: int, ledger: Ledger, setting: Setting) -> int:
    """Elements in which a weight is gathered, padded to a multiple of the ranks; small ones are whole in any case."""
    packed, knobs = packed_elements(numel, ledger.computation.precision.bytes), ledger.knobs
    if packed <= persistence_elements(setting.model, knobs) and knobs.persisted is None:
        return 0
    return padded(packed, setting.world_size)


@lru_cache(maxsize=256)
def _required(model: Model, adapters: Adapters, skipping: bool) -> tuple[tuple[int, int], ...]:
    """(numel, how many) of the weights whose input requires a gradient."""
    first = first_adapted(model, adapters) if skipping else 0
    counts: dict[int, int] = {}
    for index, block in enumerate(model.blocks[first:]):
        left_out = skipped(block, adapters).weights if skipping and index == 0 else frozenset()
        for weight in _linear(block):
            if weight not in left_out:
                counts[weight.numel] = counts.get(weight.numel, 0) + 1
    return tuple(counts.items())


def _linear(block: Block) -> tuple[Parameter, ...]:
    """A layer's quantised weights."""
    return tuple(p for p in block.parameters if p.kind is ParameterKind.LINEAR)
