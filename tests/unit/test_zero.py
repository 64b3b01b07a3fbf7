"""strategies/zero.py: what each stage cuts, with its buffers, phases, traffic and keys."""

from __future__ import annotations

import pytest
from trainplan.planner.ledger import Device, Item, Ledger, Phase, flat_partition, tensor_partition, touched
from trainplan.planner.states import SUB_GROUP_ELEMENTS, sub_groups, trained_tensors
from trainplan.planner.work import Resource, When
from trainplan.planner.workload import Precision as Kind
from trainplan.strategies import zero
from trainplan.strategies.accumulation import GradientAccumulation
from trainplan.strategies.precision import Precision
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

MODEL = llama()
TENSORS = trained_tensors(MODEL, None)
N = TENSORS.total
LAYER = 256 * 256 + 2 * 128 * 256 + 256 * 256 + 3 * 256 * 688 + 2 * 256
EMBEDDING = 2048 * 256
BUCKET = 1_000_000  # 256^2 = 65,536 is below the smallest


def phases_of(ledger: Ledger, item: Item) -> set[Phase]:
    """When any line of an item is alive on the GPU."""
    return {p for e in ledger.entries if e.item is item and e.device is Device.GPU for p in e.phases}


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_stage_1_cuts_the_optimizer(ranks: int) -> None:
    """Weights whole, master and moments by the padded slice."""
    ledger = folded(Zero(1), at=setting(ranks=ranks))
    part = -(-N // (2 * ranks)) * 2
    assert ledger.bytes_of(Item.WEIGHTS) == 2 * part * ranks
    assert ledger.bytes_of(Item.MASTER, Item.MOMENTS) == (4 + 8) * part


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_stage_3_cuts_every_tensor(ranks: int) -> None:
    """16 bytes a trained element over the ranks, each tensor padded on its own."""
    ledger = folded(Zero(3), at=setting(ranks=ranks))
    part = sum(-(-p.numel // ranks) for p in MODEL.parameters)
    assert ledger.bytes_of(Item.WEIGHTS, Item.MASTER, Item.MOMENTS, Item.GRADIENTS) == (2 + 4 + 8 + 2) * part


@pytest.mark.parametrize("stage", [1, 2])
def test_reduced_gradients_are_there_while_activations_are(stage: int) -> None:
    """The buffer of whole tensors is allocated at the first reduction of a backward pass, not at its end."""
    ledger = folded(Zero(stage))
    assert ledger.bytes_of(Item.GRADIENTS) == 2 * touched(TENSORS, 2)
    assert {Phase.BACKWARD, Phase.RECOMPUTE, Phase.BACKWARD_END, Phase.STEP} <= phases_of(ledger, Item.GRADIENTS)


def test_stage_1_holds_the_whole_gradient_and_its_own_at_the_last_micro_step() -> None:
    """Measured with two micro-steps on one rank: the backward pass peaks at 2 N + 2 P_touch beside all activations."""
    at = setting(micro_steps=2)
    before, after = folded(Zero(1)).by_phase(Device.GPU), folded(Zero(1), at=at).by_phase(Device.GPU)
    assert after[Phase.BACKWARD] - before[Phase.BACKWARD] == 2 * N
    assert after[Phase.BACKWARD_END] - before[Phase.BACKWARD_END] == 2 * N - 2 * touched(TENSORS, 2)
    assert after[Phase.STEP] == before[Phase.STEP]


def test_stage_2_keeps_two_generations_or_one_fp32_slice() -> None:
    """With 2 ranks the whole tensors of two generations exceed 4 N / 2; with one micro-step they do not."""
    assert 2 * touched(TENSORS, 2) < 4 * flat_partition(TENSORS, 2) < 2 * 2 * touched(TENSORS, 2)
    assert not zero.accumulates_fp32(folded(), setting())
    assert zero.accumulates_fp32(folded(), setting(micro_steps=2))
    ledger = folded(Zero(2), at=setting(micro_steps=2))
    assert ledger.bytes_of(Item.GRADIENTS) == 4 * flat_partition(TENSORS, 2)
    assert ledger.deepspeed["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in folded(Zero(2)).deepspeed


def test_stage_2_otherwise_keeps_the_earlier_generation() -> None:
    """Where no compact buffer helps (here: fp32 training) earlier micro-steps' tensors are held beside the new ones."""
    at = setting(micro_steps=2)
    ledger = folded(Precision(Kind.FP32), Zero(2), at=at)
    touch = touched(TENSORS, 2)
    assert ledger.bytes_of(Item.ACCUMULATED) == ledger.bytes_of(Item.GRADIENTS) == 4 * touch
    gap = ledger.by_phase(Device.GPU)[Phase.FORWARD] - ledger.bytes_of(Item.WEIGHTS, Item.MASTER, Item.MOMENTS)
    assert gap == 4 * touch


def test_fp32_needs_no_second_copy_at_the_step() -> None:
    """Flattened fp32 gradients are not cast: 4 bytes an element, where 16 bit needs 2 + 4."""
    part = flat_partition(TENSORS, 2)
    assert folded(Precision(Kind.FP32), Zero(2)).bytes_of(Item.STEP_TEMPORARIES) == 4 * part
    assert folded(Zero(2)).bytes_of(Item.STEP_TEMPORARIES) == (2 + 4) * part


@pytest.mark.parametrize("stage", [1, 2])
def test_the_bucket_is_doubled_by_overlap(stage: int) -> None:
    """overlap_comm fills one bucket while the other is reduced."""
    ledger = folded(Zero(stage))
    assert ledger.bytes_of(Item.REDUCE_BUCKET) == 2 * 2 * BUCKET
    section = ledger.deepspeed["zero_optimization"]
    assert section["overlap_comm"] is True
    assert section["reduce_bucket_size"] == BUCKET


def test_stage_3_gathers_two_layers_and_the_largest_tensor() -> None:
    """live = 2 layers; L = min(N, live + largest); copies of two prefetch buckets, at most L."""
    ledger = folded(Zero(3))
    gathered = min(N, 2 * LAYER + EMBEDDING)
    prefetch = int(0.9 * BUCKET)
    assert ledger.bytes_of(Item.GATHERED) == 2 * (gathered + min(2 * prefetch, gathered))
    assert Phase.STEP not in phases_of(ledger, Item.GATHERED)


def test_stage_3_keeps_norms_whole() -> None:
    """Nine norms of 256 are below 10 h = 2,560 elements; three ranks pad each to 258; the step gives them up."""
    assert folded(Zero(3)).bytes_of(Item.PERSISTENT) == 2 * 9 * 256
    assert folded(Zero(3), at=setting(ranks=3)).bytes_of(Item.PERSISTENT) == 2 * 9 * 258
    assert Phase.STEP not in phases_of(folded(Zero(3)), Item.PERSISTENT)


def test_stage_1_sums_in_fp32_whole() -> None:
    """Another optimizer: 4 N fp32 from start-up on, 2 N in .grad, no bucket; then a 16-bit copy is reduced."""
    flat, part = 2 * flat_partition(TENSORS, 2), flat_partition(TENSORS, 2)
    ledger = folded(GradientAccumulation(Kind.FP32), Zero(1))
    assert ledger.bytes_of(Item.GRADIENTS) == 4 * flat + 2 * N
    assert ledger.bytes_of(Item.REDUCE_BUCKET) == 0
    assert ledger.by_phase(Device.GPU)[Phase.START] == 2 * flat + 4 * part + 4 * flat
    assert ledger.by_phase(Device.GPU)[Phase.STEP] == 2 * flat + (4 + 8) * part + 4 * flat + 2 * N + 2 * flat
    assert ledger.deepspeed["data_types"] == {"grad_accum_dtype": "fp32"}


def test_required_sums_are_kept() -> None:
    """Stage 2 takes the type that is required, not the smaller one; stage 3's buffer has its bytes."""
    at = setting(micro_steps=2)
    bf16, fp32 = GradientAccumulation(Kind.BF16), GradientAccumulation(Kind.FP32)
    assert folded(bf16, Zero(2), at=at).bytes_of(Item.GRADIENTS) == 2 * touched(TENSORS, 2)
    assert folded(fp32, Zero(2)).bytes_of(Item.GRADIENTS) == 4 * flat_partition(TENSORS, 2)
    part = tensor_partition(TENSORS, 2)
    assert folded(bf16, Zero(3)).bytes_of(Item.GRADIENTS) == 2 * part
    assert folded(fp32, Zero(3)).bytes_of(Item.GRADIENTS) == 4 * part
    assert folded(fp32, Zero(3)).bytes_of(Item.STEP_TEMPORARIES) == 4 * part


@pytest.mark.parametrize(("kind", "size"), [(Kind.BF16, 2), (Kind.FP32, 4)])
def test_start_up_is_flattening_or_zeros(kind: Kind, size: int) -> None:
    """Stages 1 and 2: the module beside its flat copy, or flat copy, master and as many zeros: whichever is more."""
    for ranks in (1, 2, 8):
        part = flat_partition(TENSORS, ranks)
        start = folded(Precision(kind), Zero(2), at=setting(ranks=ranks)).by_phase(Device.GPU)[Phase.START]
        assert start == max(2 * size * part * ranks, size * part * ranks + (4 + 4) * part)


def test_stage_3_step_is_bounded_by_the_sub_group() -> None:
    """6 bytes an element of one sub-group: here the whole partition, in a large model 1e8 and one tensor's part."""
    assert folded(Zero(3)).bytes_of(Item.STEP_TEMPORARIES) == 6 * tensor_partition(TENSORS, 2)
    big = trained_tensors(llama(hidden=2048, layers=8, intermediate=8192, vocab=32000), None)
    groups = sub_groups(big, 2, 100_000_000)
    assert zero.sub_group_elements(big, 2) == max(groups) < 100_000_000 + 32000 * 2048 // 2
    assert sum(groups) == tensor_partition(big, 2)


def test_emitted_sizes_are_the_ledgers() -> None:
    """Bucket, prefetch, persistence, sub-group and live window stand in the file as the lines assume them."""
    section = folded(Zero(3)).deepspeed["zero_optimization"]
    assert section["reduce_bucket_size"] == BUCKET == folded(Zero(3)).bytes_of(Item.REDUCE_BUCKET) // 2
    assert section["stage3_prefetch_bucket_size"] == int(0.9 * BUCKET)
    assert section["stage3_param_persistence_threshold"] == 10 * 256
    assert section["sub_group_size"] == SUB_GROUP_ELEMENTS
    assert section["stage3_max_live_parameters"] == section["stage3_max_reuse_distance"] == 2 * LAYER


def test_the_batch_triangle_is_written() -> None:
    """DeepSpeed refuses a run whose batch does not multiply."""
    keys = folded(Zero(2), at=setting(ranks=4, micro_batch=2, micro_steps=3)).deepspeed
    assert (keys["train_micro_batch_size_per_gpu"], keys["gradient_accumulation_steps"]) == (2, 3)
    assert keys["gradient_clipping"] == 1.0


@pytest.mark.parametrize(("stage", "once"), [(1, True), (2, False)])
def test_whole_buckets_are_all_reduced(stage: int, once: bool) -> None:
    """Stages 1 and 2 never reduce-scatter; stage 1 reduces in the last micro-step, stage 2 in each."""
    work = folded(Zero(stage)).work
    assert not [w for w in work if w.resource is Resource.REDUCE_SCATTER]
    assert [(w.amount, w.once) for w in work if w.resource is Resource.ALL_REDUCE] == [(2 * N, once)]
    assert [w.amount for w in work if w.resource is Resource.ALL_GATHER] == [2 * N]


def test_stage_3_gathers_twice_and_scatters_once_a_micro_step() -> None:
    """The live window at the end of forward is not gathered again."""
    work = [w for w in folded(Zero(3)).work if w.resource is not Resource.MEMORY]
    assert [(w.resource, w.when, w.amount, w.once) for w in work] == [
        (Resource.ALL_GATHER, When.FORWARD, 2 * N, False),
        (Resource.ALL_GATHER, When.BACKWARD, 2 * (N - 2 * LAYER), False),
        (Resource.REDUCE_SCATTER, When.BACKWARD, 2 * N, False),
    ]
