"""What saving a checkpoint holds besides the states: weights gathered on the GPU, copies on the host.

transformers' Trainer first writes the weights, then the states of every rank.

- Stages 0 to 2: every rank copies all weights to the host, though rank 0 alone writes them.
- Stage 3: the parameters of one module at a time are gathered whole on every GPU; rank 0 collects them on the host.
- States are written storage by storage: one that lies on the GPU is copied to the host whole.

Source:
    accelerate 1.15.0 ``Accelerator.get_state_dict``; DeepSpeed 0.19.8 runtime/engine.py,
    ``_zero3_consolidated_16bit_state_dict`` and ``save_checkpoint``; torch 2.13.0 ``torch.save``. The gather was walked
    on real engines; copies to the host were read, not run. safetensors writes from the tensors' own memory. Memory
    model §F5.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from .ledger import Certainty, Device, Entry, Item, Ledger, Phase, flat_partition
from .model import Model, Parameter
from .states import FP32, SUB_GROUP_ELEMENTS, sub_groups
from .transform import Setting


def saving_entries(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Lines of the save phase."""
    copies = max(weights_copy_bytes(ledger, setting), states_copy_bytes(ledger, setting))
    why = "weights on their way to disk, or one storage of the states"
    host = Entry(Item.SAVING, Device.HOST, copies, (Phase.SAVE,), why, Certainty.ASSUMED)
    if ledger.stage != 3 or setting.world_size == 1:
        return (host,)
    elements = gathered_to_save(setting.model, setting.world_size)
    size = ledger.computation.precision.bytes * elements
    return host, Entry(Item.GATHERED, Device.GPU, size, (Phase.SAVE,), f"one module of {elements:,} elements, to save")


def weights_copy_bytes(ledger: Ledger, setting: Setting) -> int:
    """Copies of all weights on a host: one a rank, at stage 3 one a node (and none but on the first)."""
    e, sharded = ledger.computation.precision.bytes, ledger.stage == 3
    quantized = ledger.bytes_of(Item.QUANTIZED) * (setting.world_size if sharded else 1) + ledger.bytes_of(Item.SCALES)
    whole = e * (ledger.trainable.total + ledger.frozen.total) + quantized
    return -(-whole // setting.ranks_per_node) if sharded else whole


def states_copy_bytes(ledger: Ledger, setting: Setting) -> int:
    """The largest fp32 storage of the states on the GPU: a slice, a sub-group, or at stage 0 a tensor."""
    if not ledger.bytes_of(Item.MASTER, Item.MOMENTS):
        return 0
    tensors, ranks = ledger.trainable, setting.world_size
    if ledger.stage == 3:
        return FP32 * max(sub_groups(tensors, ranks, ledger.knobs.sub_group or SUB_GROUP_ELEMENTS))
    return FP32 * (flat_partition(tensors, ranks) if ledger.stage else tensors.largest)


@lru_cache(maxsize=256)
def gathered_to_save(model: Model, ranks: int) -> int:
    """Elements of the module with most parameters of its own, each padded to a multiple of the ranks.

    Source:
        DeepSpeed 0.19.8 runtime/engine.py, ``module.parameters(recurse=False)`` inside ``GatheredParameters``.
    """
    most = max(max(own_elements(block.parameters, ranks)) for block, _ in model.distinct_blocks)
    return max(most, *own_elements((*model.embedding, *model.head), ranks))


def own_elements(parameters: tuple[Parameter, ...], ranks: int) -> tuple[int, ...]:
    """Padded elements of each module's own parameters."""
    own: Counter[str] = Counter()
    for parameter in parameters:
        own[parameter.name.rpartition(".")[0]] += -(-parameter.numel // ranks) * ranks
    return tuple(own.values())
