"""planner/saving.py: what writing a checkpoint holds."""

from __future__ import annotations

from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import Device, Item, Ledger, Phase, flat_partition
from trainplan.planner.saving import gathered_to_save
from trainplan.planner.states import trained_tensors
from trainplan.planner.transform import Stack, Strategy
from trainplan.strategies.lora import Lora
from trainplan.strategies.offload_optimizer import OffloadOptimizer
from trainplan.strategies.zero import Zero

from ..tiny import llama, setting

TENSORS = trained_tensors(llama(), None)
N = TENSORS.total
EMBEDDING = 2048 * 256


def whole(*strategies: Strategy, ranks: int = 4) -> Ledger:
    """The complete ledger."""
    return evaluate(Stack.of(*strategies), setting(ranks=ranks))


def test_below_stage_3_every_rank_copies_all_weights() -> None:
    """2 N of host RAM a rank: accelerate clones the whole state dict everywhere, though rank 0 alone writes."""
    for stage in (0, 1, 2):
        assert whole(Zero(stage)).bytes_of(Item.SAVING, device=Device.HOST) == 2 * N
        assert whole(Zero(stage)).bytes_of(Item.GATHERED) == 0


def test_at_stage_3_one_rank_of_the_node_collects_them() -> None:
    """2 N a node, and on every GPU one module whole: the embedding, which two ranks or four divide."""
    ledger = whole(Zero(3), OffloadOptimizer())
    assert ledger.bytes_of(Item.SAVING, device=Device.HOST) == -(-2 * N // 4)
    saved = [e for e in ledger.entries if e.phases == (Phase.SAVE,) and e.device is Device.GPU]
    assert [(e.item, e.bytes) for e in saved] == [(Item.GATHERED, 2 * EMBEDDING)]
    assert gathered_to_save(llama(), 3) == EMBEDDING + 1  # padded to a multiple of three


def test_states_on_the_gpu_are_copied_storage_by_storage() -> None:
    """With one rank an fp32 slice is more than the 16-bit model; adapters save their frozen base, too."""
    alone = whole(Zero(1), ranks=1)
    assert alone.bytes_of(Item.SAVING, device=Device.HOST) == 4 * flat_partition(TENSORS, 1) > 2 * N
    lora = whole(Lora(), Zero(1))
    assert lora.bytes_of(Item.SAVING, device=Device.HOST) == 2 * (N + lora.trainable.total)


def test_states_stay_while_they_are_saved() -> None:
    """Nothing of a step is alive but what lasts."""
    ledger = whole(Zero(1))
    lasting = ledger.bytes_of(Item.WEIGHTS, Item.MASTER, Item.MOMENTS)
    assert ledger.by_phase(Device.GPU)[Phase.SAVE] == lasting
