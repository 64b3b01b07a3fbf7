"""What ZeRO-3 gathers, and the sizes that bound it: written to ds_config.json as they are counted here.

Symbols: N trained elements, F frozen elements, e bytes of the training precision, d ranks, B reduce bucket (elements),
L gathered elements.

Source:
    DeepSpeed 0.19.8 runtime/zero/partitioned_param_coordinator.py and partition_parameters.py, tensors of real engines
    walked. Memory model §W5, §W6.
"""

from __future__ import annotations

from .ledger import BACKWARDS, Device, Entry, Item, Ledger, Phase
from .model import Model
from .states import largest_module, layer_elements
from .transform import Setting

SMALLEST_BUCKET, LARGEST_BUCKET = (
    1_000_000,
    50_000_000,
)  # elements; below, launch latency rules; above, only memory grows
PREFETCH_SHARE = 0.9  # of the bucket, as transformers resolves "auto": integrations/deepspeed.py, 0.9 h^2
PERSISTENCE_PER_HIDDEN = 10  # elements, as transformers resolves "auto": 10 h
LIVE_LAYERS = 2  # the layer that computes and the one that is fetched


def reduce_bucket_elements(model: Model) -> int:
    """B: h^2, between 1e6 and 5e7 elements.

    Source:
        transformers integrations/deepspeed.py resolves "auto" to h^2; bounds: see the constants above.
    """
    return min(max(model.hidden**2, SMALLEST_BUCKET), LARGEST_BUCKET)


def prefetch_elements(model: Model) -> int:
    """Elements fetched ahead at a time."""
    return int(PREFETCH_SHARE * reduce_bucket_elements(model))


def live_elements(model: Model) -> int:
    """stage3_max_live_parameters: two layers, so that one is fetched while one computes."""
    return LIVE_LAYERS * layer_elements(model)


def gathered_elements(ledger: Ledger, model: Model) -> int:
    """L = min(N + F, live + largest tensor): what the prefetcher keeps gathered from the third step on.

    Source:
        DeepSpeed 0.19.8 partitioned_param_coordinator.py, measured: live 1e6 -> 1.43e6 gathered, 2e6 -> 2.50e6.
    """
    return min(ledger.trainable.total + ledger.frozen.total, live_elements(model) + largest_module(model))


def gathered_entries(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Whole layers while they compute, and small tensors for good."""
    e, model = ledger.computation.precision.bytes, setting.model
    gathered = gathered_elements(ledger, model)
    persistent = persistent_elements(ledger, setting)
    copies = min(2 * prefetch_elements(model), gathered)
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
    d, most = setting.world_size, PERSISTENCE_PER_HIDDEN * setting.model.hidden
    return sum(
        -(-n // d) * d * count for t in (ledger.trainable, ledger.frozen) for n, count in t.histogram if n <= most
    )
