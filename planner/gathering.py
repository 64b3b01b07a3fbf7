"""What ZeRO-3 gathers, and the sizes that bound it: written to ds_config.json as they are counted here.

Symbols: N trained elements, F frozen elements, Q elements that hold NF4 weights, e bytes of the training precision, d
ranks, B reduce bucket (elements), L gathered elements.

Source:
    DeepSpeed 0.19.8 runtime/zero/partitioned_param_coordinator.py and partition_parameters.py, tensors of real engines
    walked. Memory model §W5, §W6.
"""

from __future__ import annotations

from .knobs import CHOSEN, Knobs
from .ledger import BACKWARDS, Device, Entry, Item, Ledger, Phase, Tensors
from .model import Model
from .states import NOTHING, largest_module, layer_elements, packed_tensors
from .transform import Setting

SMALLEST_BUCKET, LARGEST_BUCKET = (
    1_000_000,
    50_000_000,
)  # elements; below, launch latency rules; above, only memory grows
PREFETCH_SHARE = 0.9  # of the bucket, as transformers resolves "auto": integrations/deepspeed.py, 0.9 h^2
PERSISTENCE_PER_HIDDEN = 10  # elements, as transformers resolves "auto": 10 h
LIVE_LAYERS = 2  # the layer that computes and the one that is fetched


def reduce_bucket_elements(model: Model, knobs: Knobs = CHOSEN) -> int:
    """B: h^2, between 1e6 and 5e7 elements, unless a configuration says another.

    Source:
        transformers integrations/deepspeed.py resolves "auto" to h^2; bounds: see the constants above.
    """
    chosen = min(max(model.hidden**2, SMALLEST_BUCKET), LARGEST_BUCKET)
    return chosen if knobs.reduce_bucket is None else knobs.reduce_bucket


def prefetch_elements(model: Model, knobs: Knobs = CHOSEN) -> int:
    """Elements fetched ahead at a time."""
    return int(PREFETCH_SHARE * reduce_bucket_elements(model)) if knobs.prefetch is None else knobs.prefetch


def live_elements(model: Model, knobs: Knobs = CHOSEN) -> int:
    """stage3_max_live_parameters: two layers, so that one is fetched while one computes."""
    return LIVE_LAYERS * layer_elements(model) if knobs.live is None else knobs.live


def reuse_elements(model: Model, knobs: Knobs = CHOSEN) -> int:
    """stage3_max_reuse_distance: as far as what is live, or what a configuration says."""
    return live_elements(model) if knobs.reuse is None else knobs.reuse


def persistence_elements(model: Model, knobs: Knobs = CHOSEN) -> int:
    """stage3_param_persistence_threshold: tensors up to this size stay whole on every rank."""
    return PERSISTENCE_PER_HIDDEN * model.hidden if knobs.persistence is None else knobs.persistence


def kept_elements(model: Model, knobs: Knobs = CHOSEN) -> int:
    """Elements that stay gathered: prefetching fills up to `live`; what is used again within `reuse` is not released.

    Without prefetching `live` bounds nothing.
    """
    ahead = live_elements(model, knobs) if prefetch_elements(model, knobs) else 0
    return max(ahead, reuse_elements(model, knobs))


def cut_tensors(ledger: Ledger, model: Model) -> tuple[Tensors, Tensors, Tensors]:
    """What ZeRO-3 cuts and gathers: trained tensors, frozen ones, and those that hold NF4 weights."""
    packed = packed_tensors(model, ledger.computation.precision.bytes) if ledger.computation.quantized else NOTHING
    return ledger.trainable, ledger.frozen, packed


def gathered_elements(ledger: Ledger, model: Model) -> int:
    """L = min(N + F + Q, max(live, reuse) + largest tensor): what stays gathered from the third step on.

    Source:
        DeepSpeed 0.19.8 partitioned_param_coordinator.py, measured: live 1e6 -> 1.43e6 gathered, 2e6 -> 2.50e6; live 0
        with reuse 1e9 -> the whole of a small model. Without prefetch reuse 2e6 -> 1.05e6: an upper bound there.
    """
    most = kept_elements(model, ledger.knobs) + largest_module(model)
    return min(sum(tensors.total for tensors in cut_tensors(ledger, model)), most)


def gathered_entries(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Whole layers while they compute, and small tensors for good."""
    e, model = ledger.computation.precision.bytes, setting.model
    gathered = gathered_elements(ledger, model)
    persistent = persistent_elements(ledger, setting)
    copies = min(2 * prefetch_elements(model, ledger.knobs), gathered)
    computing = (Phase.FORWARD, Phase.LOSS, *BACKWARDS)
    return (
        Entry(
            Item.GATHERED,
            Device.GPU,
            e * (gathered + copies),
            computing,
            f"{e} B x (live {gathered:,} + prefetch copies {copies:,})",
        ),
        Entry(
            Item.PERSISTENT,
            Device.GPU,
            e * persistent,
            (*computing, Phase.SAVE),
            f"{e} B x {persistent:,} elements of small tensors",
        ),
    )


def persistent_elements(ledger: Ledger, setting: Setting) -> int:
    """Elements of the small tensors that stay whole on every rank, each padded to a multiple of the ranks.

    They are given up as the step begins and gathered again at its end.
    """
    d, most = setting.world_size, persistence_elements(setting.model, ledger.knobs)
    tensors = cut_tensors(ledger, setting.model)
    small = [padded(n, d) * count for t in tensors for n, count in t.histogram if n <= most]
    return sum(small) if ledger.knobs.persisted is None else min(sum(small), ledger.knobs.persisted)


def padded(numel: int, ranks: int) -> int:
    """Elements of a tensor once it is gathered: a multiple of the ranks."""
    return -(-numel // ranks) * ranks
