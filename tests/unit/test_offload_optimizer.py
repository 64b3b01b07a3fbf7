"""strategies/offload_optimizer.py: what leaves the GPU, what the host and NVMe then hold."""

from __future__ import annotations

import pytest
from trainplan.planner.ledger import Device, Item, Phase, flat_partition, tensor_partition, touched
from trainplan.planner.states import sub_groups, trained_tensors
from trainplan.planner.work import Resource, When
from trainplan.planner.workload import Precision as Kind
from trainplan.strategies import offload_optimizer
from trainplan.strategies.accumulation import GradientAccumulation
from trainplan.strategies.offload_optimizer import GROUPS, NVME_SUB_GROUP_ELEMENTS, OffloadOptimizer, pinned
from trainplan.strategies.optimizer import Optimizer
from trainplan.strategies.pipelined_swap import PipelinedSwap
from trainplan.strategies.precision import Precision
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

TENSORS = trained_tensors(llama(), None)
N = TENSORS.total
FLAT, PART = flat_partition(TENSORS, 2), tensor_partition(TENSORS, 2)
EMBEDDING = 2048 * 256


def test_stage_2_holds_18_bytes_an_element_on_the_host() -> None:
    """4 master, 4 fp32 gradient, 8 moments, 2 copy of the weights; one staging tensor on either side."""
    ledger = folded(Zero(2), OffloadOptimizer())
    assert ledger.peak(Device.HOST) == (4 + 4 + 8 + 2) * FLAT + 2 * EMBEDDING
    assert ledger.bytes_of(Item.MASTER, Item.MOMENTS, Item.GRADIENTS, Item.STEP_TEMPORARIES) == 0
    assert ledger.by_phase(Device.GPU)[Phase.STEP] == 2 * FLAT * 2 + 2 * EMBEDDING


def test_the_norm_is_taken_in_fp64_on_the_gpu() -> None:
    """Stages 1 and 2: 8 bytes of the largest piece while gradients are handed over; stage 3: of its partition."""
    assert folded(Zero(2), OffloadOptimizer()).bytes_of(Item.NORM_TEMPORARY) == 8 * EMBEDDING
    assert folded(Zero(3), OffloadOptimizer()).bytes_of(Item.NORM_TEMPORARY) == 8 * EMBEDDING // 2
    assert folded(Zero(2)).bytes_of(Item.NORM_TEMPORARY) == 0


def test_stage_2_accumulates_on_the_host_stage_1_on_the_gpu() -> None:
    """Whole tensors of earlier micro-steps wait in pinned memory, or whole gradients in .grad."""
    at = setting(micro_steps=2)
    two, one = folded(Zero(2), OffloadOptimizer(), at=at), folded(Zero(1), OffloadOptimizer(), at=at)
    assert two.bytes_of(Item.ACCUMULATED, device=Device.HOST) == 2 * touched(TENSORS, 2)
    assert two.bytes_of(Item.GRADIENTS) == 0
    assert one.bytes_of(Item.ACCUMULATED, device=Device.HOST) == 0
    assert one.bytes_of(Item.GRADIENTS) == 2 * N
    assert {w.name for w in two.work} - {w.name for w in one.work} == {
        "accumulate gradients on host",
        "accumulated gradients from host",
    }


@pytest.mark.parametrize("stage", [1, 2])
def test_overlap_is_off_with_one_bucket(stage: int) -> None:
    """The file says so, and the ledger charges one bucket."""
    ledger = folded(Zero(stage), OffloadOptimizer())
    assert ledger.deepspeed["zero_optimization"]["overlap_comm"] is False
    assert ledger.bytes_of(Item.REDUCE_BUCKET) == 2 * 1_000_000


def test_stage_2_accumulates_in_16_bit() -> None:
    """The fp32 buffer of stage 2 alone would stay on the GPU."""
    ledger = folded(Zero(2), OffloadOptimizer(), at=setting(micro_steps=2))
    assert ledger.deepspeed["data_types"] == {"grad_accum_dtype": "bf16"}


def test_stage_3_holds_18_bytes_an_element_on_the_host() -> None:
    """Weights stay; master, gradients in both precisions and moments go."""
    ledger = folded(Zero(3), OffloadOptimizer())
    assert ledger.peak(Device.HOST) == (4 + 4 + 8 + 2) * PART
    assert ledger.bytes_of(Item.WEIGHTS) == 2 * PART
    assert ledger.bytes_of(Item.MASTER, Item.MOMENTS, Item.GRADIENTS, Item.STEP_TEMPORARIES) == 0


@pytest.mark.parametrize("groups", [1, 7, 19])
def test_a_share_covers_every_element_on_either_side(groups: int) -> None:
    """Sub-groups are whole tensors, so one may lean over: both sides together hold at least the whole, never less."""
    ledger = folded(Zero(3), OffloadOptimizer("cpu", groups))
    on_gpu, on_host = (ledger.bytes_of(Item.MASTER, device=d) for d in (Device.GPU, Device.HOST))
    assert on_gpu + on_host >= 4 * PART
    assert on_host >= 4 * PART * groups // GROUPS
    section = ledger.deepspeed["zero_optimization"]
    assert section["offload_optimizer"]["ratio"] == groups / GROUPS
    assert section["sub_group_size"] == PART // GROUPS


def test_a_share_is_whole_sub_groups() -> None:
    """The first int((1 - r) n) of n stay, with their fp32 gradients: they are not freed between steps."""
    groups = sub_groups(TENSORS, 2, PART // GROUPS)
    stay = sum(groups[: int((1 - 0.6) * len(groups))])
    ledger = folded(Zero(3), OffloadOptimizer("cpu", 12))
    assert 0 < stay < PART
    assert ledger.bytes_of(Item.MASTER, Item.GRADIENTS_HOST, Item.MOMENTS) == (4 + 4 + 8) * stay
    assert ledger.bytes_of(Item.MASTER, device=Device.HOST) == 4 * (PART - stay)
    gradients = next(e for e in ledger.entries if e.item is Item.GRADIENTS_HOST and e.device is Device.HOST)
    assert gradients.upper_bytes >= sum(pinned(4 * n) for n in groups[int((1 - 0.6) * len(groups)) :])


def test_fp32_sums_stay_on_the_gpu_at_stage_2_and_leave_at_stage_3() -> None:
    """Stage 2 keeps the fp32 slice where gradients are made; stage 3's buffer is pinned with the rest."""
    fp32 = GradientAccumulation(Kind.FP32)
    two = folded(fp32, Zero(2), OffloadOptimizer(), at=setting(micro_steps=2))
    assert two.bytes_of(Item.GRADIENTS) == 4 * FLAT
    assert two.bytes_of(Item.ACCUMULATED, device=Device.HOST) == 0
    assert folded(fp32, Zero(3), OffloadOptimizer()).bytes_of(Item.GRADIENTS, device=Device.HOST) == 4 * PART


def test_lion_keeps_a_second_state_on_the_host() -> None:
    """DeepSpeedCPULion allocates a variance that it never uses: 8 bytes an element there, 4 on the GPU."""
    lion = Optimizer("lion")
    assert folded(lion, Zero(3), OffloadOptimizer()).bytes_of(Item.MOMENTS, device=Device.HOST) == 8 * PART
    assert folded(lion, Zero(3)).bytes_of(Item.MOMENTS) == 4 * PART


def test_fp16_looks_for_infinities_on_the_host() -> None:
    """One flag of a byte for each gradient of the pinned buffer."""
    ledger = folded(Precision(Kind.FP16), Zero(3), OffloadOptimizer())
    assert ledger.bytes_of(Item.STEP_TEMPORARIES, device=Device.HOST) == PART
    assert folded(Zero(3), OffloadOptimizer()).bytes_of(Item.STEP_TEMPORARIES, device=Device.HOST) == 0


def test_a_larger_share_frees_the_gpu() -> None:
    """GPU bytes fall and host bytes rise with the share."""
    ledgers = [folded(Zero(3), OffloadOptimizer("cpu", g)) for g in range(1, GROUPS + 1)]
    gpu, host = ([x.peak(d) for x in ledgers] for d in (Device.GPU, Device.HOST))
    assert gpu == sorted(gpu, reverse=True)
    assert host == sorted(host)


def test_nvme_holds_16_bytes_an_element_behind_four_buffers() -> None:
    """Master, two moments and gradient in fp32; four pinned buffers of one sub-group, here the whole partition."""
    ledger = folded(Zero(3), OffloadOptimizer("nvme"))
    assert ledger.peak(Device.NVME) == 16 * PART
    assert ledger.bytes_of(Item.SWAP_BUFFERS, device=Device.HOST) == 4 * 4 * PART
    section = ledger.deepspeed["zero_optimization"]
    assert section["sub_group_size"] == NVME_SUB_GROUP_ELEMENTS
    assert section["offload_optimizer"]["buffer_count"] == 4
    assert section["offload_optimizer"]["fast_init"] is False


def test_nvme_is_read_and_written_once_a_step() -> None:
    """16 bytes an element read at the step; 4 written in the last backward pass (gradients), 12 at the step."""
    work = folded(Zero(3), OffloadOptimizer("nvme"), at=setting(micro_steps=4)).work
    moved = {(w.resource, w.when): (w.amount, w.once, w.side) for w in work if "NVMe" in w.resource.value}
    assert moved == {
        (Resource.NVME_READ, When.STEP): (16 * PART, True, False),
        (Resource.NVME_WRITE, When.BACKWARD): (4 * PART, True, True),
        (Resource.NVME_WRITE, When.STEP): (12 * PART, True, False),
    }


def test_a_pipelined_swap_hides_all_but_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n sub-groups one share of each stage hides behind nothing; 12 buffers of one sub-group are pinned."""
    monkeypatch.setattr(offload_optimizer, "NVME_SUB_GROUP_ELEMENTS", PART // 4)
    groups = len(sub_groups(TENSORS, 2, PART // 4))
    plain, piped = (folded(Zero(3), OffloadOptimizer("nvme"), *more) for more in ((), (PipelinedSwap(),)))
    for resource, whole in ((Resource.NVME_READ, 16), (Resource.NVME_WRITE, 12), (Resource.HOST_MEMORY, 34)):
        stage = [w for w in piped.work if w.resource is resource and w.when is When.STEP]
        assert {w.pipelined: w.amount for w in stage} == pytest.approx(
            {True: whole * PART * (groups - 1) / groups, False: whole * PART / groups}
        )
    buffers = [x.bytes_of(Item.SWAP_BUFFERS, device=Device.HOST) for x in (plain, piped)]
    assert buffers[1] == 3 * buffers[0]
    section = piped.deepspeed["zero_optimization"]["offload_optimizer"]
    assert (section["buffer_count"], section["pipeline_read"], section["pipeline_write"]) == (12, True, True)


def test_copies_of_stages_1_and_2_hide_behind_nothing() -> None:
    """Without overlap_comm reductions and copies run on the stream of the backward pass."""
    for stage in (1, 2):
        work = folded(Zero(stage), OffloadOptimizer(), at=setting(micro_steps=4)).work
        backward = [w for w in work if w.when is When.BACKWARD]
        assert backward
        assert not any(w.side for w in backward)


def test_a_share_moves_its_own_weights_and_gradients() -> None:
    """Half of the optimizer on the host: half the fp32 gradients go down and half the weights come back."""
    half = {w.name: w for w in folded(Zero(3), OffloadOptimizer("cpu", 10)).work}
    assert half["fp32 gradients to host"].amount == 4 * -(-PART // 2)
    assert half["updated weights from host"].amount == 2 * -(-PART // 2)
    assert half["updated weights from host"].resource is Resource.PAGEABLE_TO_GPU


def test_the_cpu_kernel_takes_no_gpu_options() -> None:
    """torch_adam and fused would choose torch's optimizer instead of DeepSpeedCPUAdam."""
    params = folded(Optimizer("adamw"), Zero(2), OffloadOptimizer()).deepspeed["optimizer"]["params"]
    assert not {"torch_adam", "fused"} & set(params)
    assert params["lr"] > 0


def test_the_gpu_updates_nothing_that_left() -> None:
    """All on the host: no optimizer update in GPU memory; a share: that share's rest."""
    update = [w for w in folded(Zero(3), OffloadOptimizer()).work if w.resource is Resource.MEMORY]
    assert update == []
    half = [w for w in folded(Zero(3), OffloadOptimizer("cpu", 10)).work if w.resource is Resource.MEMORY]
    whole = [w for w in folded(Zero(3)).work if w.resource is Resource.MEMORY]
    assert half[0].amount == pytest.approx(whole[0].amount / 2, rel=1e-5)


def test_pinned_memory_is_rounded_up() -> None:
    """To a power of two; the point estimate is not."""
    assert [pinned(x) for x in (0, 1, 1024, 1025)] == [0, 1, 1024, 2048]


@pytest.mark.parametrize("groups", [0, GROUPS + 1])
def test_a_share_is_between_one_group_and_all(groups: int) -> None:
    """Refused in words."""
    assert "sub-groups" in str(OffloadOptimizer("cpu", groups).accepts(setting()))
