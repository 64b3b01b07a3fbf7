"""strategies/start_up.py: a model that is whole on every GPU before ZeRO-3 cuts it."""

from __future__ import annotations

from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import Device, Item, Phase
from trainplan.planner.states import trained_tensors
from trainplan.planner.transform import Stack
from trainplan.strategies.lora import Lora
from trainplan.strategies.offload_parameters import OffloadParameters
from trainplan.strategies.start_up import WithoutZeroInit
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

N = trained_tensors(llama(), None).total
EMBEDDING = 2048 * 256


def test_the_whole_model_is_on_the_gpu_first() -> None:
    """Parameters that will lie on the host, a frozen base: at start-up they are on the GPU, and the first slice."""
    for ranks in (2, 8):
        ledger = folded(Lora(), Zero(3), OffloadParameters(), WithoutZeroInit(), at=setting(ranks=ranks))
        whole = 2 * (N + ledger.trainable.total + EMBEDDING // ranks)
        assert ledger.by_phase(Device.GPU)[Phase.START] == whole
        assert folded(Lora(), Zero(3), OffloadParameters(), at=setting(ranks=ranks)).zero_init


def test_what_start_up_holds_later_is_not_added() -> None:
    """16 N / d of states on one rank are more than the module was."""
    assert folded(Zero(3), WithoutZeroInit(), at=setting(ranks=1)).by_phase(Device.GPU) == folded(
        Zero(3), at=setting(ranks=1)
    ).by_phase(Device.GPU)


def test_every_rank_reads_the_whole_model() -> None:
    """2 N of host RAM a rank; with zero.Init one rank of the node does."""
    at = setting(ranks=4)
    with_init, without = (evaluate(Stack.of(Zero(3), *rest), at) for rest in ((), (WithoutZeroInit(),)))
    assert with_init.bytes_of(Item.LOADING, device=Device.HOST) == -(-2 * N // 4)
    assert without.bytes_of(Item.LOADING, device=Device.HOST) == 2 * N
