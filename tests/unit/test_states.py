"""planner/states.py: plain data parallelism, where every stack starts."""

from __future__ import annotations

from dataclasses import replace

from trainplan.planner.computation import Adapters
from trainplan.planner.ledger import Device, Item, Phase, Tensors
from trainplan.planner.states import (
    baseline,
    frozen_tensors,
    in_flight_bytes,
    layer_elements,
    quantized_tensors,
    replicated,
    sub_groups,
    trained_tensors,
    unquantized_tensors,
)
from trainplan.planner.work import Resource
from trainplan.planner.workload import Precision

from ..tiny import llama, setting

LAYER = 256 * 256 + 2 * 128 * 256 + 256 * 256 + 3 * 256 * 688 + 2 * 256
EMBEDDING = 2048 * 256
N = 2 * EMBEDDING + 4 * LAYER + 256


def test_every_rank_holds_everything() -> None:
    """bf16 AdamW: 2 N weights, 4 N master, 8 N moments, 2 N gradients, whatever the ranks."""
    for ranks in (1, 8):
        ledger = replicated(baseline(setting(ranks=ranks)), setting(ranks=ranks))
        held = [ledger.bytes_of(x) for x in (Item.WEIGHTS, Item.MASTER, Item.MOMENTS, Item.GRADIENTS)]
        assert held == [2 * N, 4 * N, 8 * N, 2 * N]


def test_the_step_adds_fp32_gradients() -> None:
    """4 N; the fp64 norm of the largest tensor is taken before they are there, and here it is smaller."""
    ledger = replicated(baseline(setting()), setting())
    assert 8 * EMBEDDING < 4 * N
    assert ledger.by_phase(Device.GPU)[Phase.STEP] == (2 + 4 + 8 + 2) * N + 4 * N


def test_a_step_on_zeros_is_taken_at_start_up() -> None:
    """In 16 bit weights, master, moments, gradients and their fp32 copies are there before the first batch."""
    ledger = replicated(baseline(setting()), setting())
    assert ledger.by_phase(Device.GPU)[Phase.START] == (2 + 4 + 8) * N + (2 + 4) * N


def test_nothing_is_reduced_on_one_rank() -> None:
    """fp32 gradients are flattened for the all-reduce; one rank has nobody to reduce with."""
    for ranks, copy in ((1, 0), (2, 4 * N)):
        at = setting(ranks=ranks)
        start = baseline(at)
        fp32 = replace(start, computation=replace(start.computation, precision=Precision.FP32))
        ledger = replicated(fp32, at)
        assert ledger.bytes_of(Item.GRADIENT_FLATTENING) == copy
        assert ledger.by_phase(Device.GPU)[Phase.STEP] == (4 + 8 + 4) * N + copy


def test_a_sub_group_is_closed_by_the_tensor_that_fills_it() -> None:
    """Partitions of 4, 1, 1 and 3 elements: 4 fills the first group of 4; 1 + 1 + 3 the second."""
    tensors = Tensors((8, 2, 2, 6))
    assert sub_groups(tensors, 2, 4) == (4, 1 + 1 + 3)
    assert sub_groups(tensors, 2, 2) == (4, 1 + 1, 3)
    assert sub_groups(tensors, 2, 9) == (9,)


def test_the_gradient_waits_for_the_next_micro_step() -> None:
    """Without accumulation gradients are complete at the end of backward; with it they live all the time."""
    alone = replicated(baseline(setting()), setting()).by_phase(Device.GPU)[Phase.FORWARD]
    several = setting(micro_steps=2)
    assert replicated(baseline(several), several).by_phase(Device.GPU)[Phase.FORWARD] == alone + 2 * N


def test_gradients_are_reduced_once_a_step() -> None:
    """Stage 0 all-reduces e N bytes after the last backward."""
    ledger = replicated(baseline(setting(micro_steps=4)), setting(micro_steps=4))
    reduction = [w for w in ledger.work if w.resource is Resource.ALL_REDUCE]
    assert [(w.amount, w.once, w.side) for w in reduction] == [(2 * N, True, False)]


def test_in_flight_is_a_layer_or_the_embedding() -> None:
    """Untied: the larger of a layer and the embedding; tied: two of the embedding."""
    assert layer_elements(llama()) == LAYER
    assert in_flight_bytes(baseline(setting()), setting()) == 2 * max(LAYER, EMBEDDING)
    tied = setting(llama(tied=True))
    assert in_flight_bytes(baseline(tied), tied) == 2 * max(LAYER, 2 * EMBEDDING)


def test_adapters_are_two_matrices_a_weight() -> None:
    """Rank 4 on q and v of one layer: 4 (256 + 256) and 4 (256 + 128)."""
    tensors = trained_tensors(llama(layers=1), Adapters(rank=4, targets=("q_proj", "v_proj")))
    assert tensors.numels == (4 * 256, 4 * 256, 4 * 256, 4 * 128)
    assert frozen_tensors(llama()).total == N


def test_quantisation_splits_the_model() -> None:
    """bitsandbytes takes the nn.Linear weights of the blocks; embeddings, norms and lm_head stay."""
    assert quantized_tensors(llama()).total == 4 * (LAYER - 2 * 256)
    assert unquantized_tensors(llama()).total == 2 * EMBEDDING + 4 * 2 * 256 + 256
