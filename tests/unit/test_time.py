"""planner/time.py: seconds from amounts of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.catalog import find_gpu
from trainplan.planner.efficiency import value
from trainplan.planner.hardware import Gpu, Node
from trainplan.planner.time import (
    StepTime,
    alignment_share,
    exposed_s,
    matmul_s_per_flop,
    matmul_share,
    price,
    price_parts,
    rates,
    refusal,
)
from trainplan.planner.time.host_rates import cpu_optimizer_bytes_per_s, host_link_bytes_per_s, pageable_bytes_per_s
from trainplan.planner.work import Resource, When, Work
from trainplan.planner.workload import Precision

GPU = Gpu(
    name="a100-80",
    full_name="A100-SXM-80GB",
    aliases=(),
    vendor="nvidia",
    architecture="Ampere sm80",
    memory_bytes=80 * 2**30,
    memory_source="",
    memory_bandwidth_bytes_per_s=2e12,
    bf16_flop_per_s=312e12,
    fp16_flop_per_s=312e12,
    fp32_flop_per_s=19.5e12,
    matmul_efficiency=0.869,
    link="NVLink3",
    link_bytes_per_s=300e9,
    nvswitch=True,
    host_link_bytes_per_s=31e9,
    tdp_w=400,
    sources=(),
)
NODE = Node(gpu=GPU, gpus=8, host_memory_bytes=None, vcpus=96, nvme_bytes=None, internode_bytes_per_s=100e9)
HOPPER = replace(GPU, name="h100", full_name="H100-SXM-80GB", architecture="Hopper sm90", link_bytes_per_s=450e9)
LAYERS = 1000  # side work of the first hides behind nothing: a thousandth
SECOND = 2e12 * 0.85  # bytes of GPU memory traffic that take one second: bandwidth x measured share
GATHER_SECOND = 300e9 * 0.783 * 8 / 7  # bytes whose all-gather over 8 GPUs takes one second, latency and ramp apart


def memory(seconds: float, when: When = When.FORWARD) -> Work:
    """Compute that takes so many seconds."""
    return Work(name="compute", resource=Resource.MEMORY, amount=seconds * SECOND, when=when)


def gather(seconds: float, when: When = When.FORWARD, *, side: bool = True, once: bool = False) -> Work:
    """A collective that takes so many seconds."""
    return Work(
        name="gather",
        resource=Resource.ALL_GATHER,
        amount=seconds * GATHER_SECOND,
        when=when,
        side=side,
        once=once,
    )


def priced(work: Sequence[Work], micro_steps: int = 1) -> StepTime:
    """On one node of 8."""
    return price(work, NODE, nodes=1, ranks_per_node=8, gradient_accumulation_steps=micro_steps, layers=LAYERS)


def test_micro_steps_repeat_and_once_does_not() -> None:
    """A step is gas x (forward + backward) plus what happens once."""
    update = Work(name="adam", resource=Resource.MEMORY, amount=0.5 * SECOND, when=When.STEP)
    step = priced([memory(1.0), memory(2.0, When.BACKWARD), update], micro_steps=4)
    assert (step.forward_s, step.backward_s, step.boundary_s) == pytest.approx((1.0, 2.0, 0.5))
    assert step.step_s == pytest.approx(4 * 3.0 + 0.5)


def test_side_work_hides_behind_compute_but_for_interference() -> None:
    """Hidden collectives still lengthen their part by the interference share."""
    share = value("overlap", "interference")
    assert priced([memory(1.0), gather(0.1)]).step_s == pytest.approx(1.0 + share * 0.1, rel=1e-3)


def test_side_work_that_is_too_long_shows() -> None:
    """Each layer's side work hides behind the layer before it: all compute but the last layer's hides something."""
    hidden = 1.0 * (LAYERS - 1) / LAYERS
    assert priced([memory(1.0), gather(5.0)]).step_s == pytest.approx(1.0 + 5.0 - hidden, rel=1e-3)


def test_work_on_the_main_stream_is_not_hidden() -> None:
    """A collective that is not side work adds all its time."""
    assert priced([memory(1.0), gather(0.1, side=False)]).step_s == pytest.approx(1.1, rel=1e-3)


def test_copies_to_the_host_hide_without_interference() -> None:
    """Copy engines take no multiprocessors."""
    copy = Work(name="copy", resource=Resource.GPU_TO_HOST, amount=0.1 * 31e9 * 0.88, when=When.FORWARD, side=True)
    assert priced([memory(1.0), copy]).step_s == pytest.approx(1.0, rel=1e-3)  # but the first layer's


def test_the_slowest_stage_of_a_pipeline_hides_the_others() -> None:
    """Reads of 2 s, writes of 1 s and updates of 0.5 s take 2 s; what is not pipelined is added; the terms add up."""
    seconds = {Resource.NVME_READ: 2.0, Resource.NVME_WRITE: 1.0, Resource.HOST_MEMORY: 0.5}
    rate = rates(NODE, 8, Precision.BF16)
    per_s = (rate.nvme_read_bytes_per_s, rate.nvme_write_bytes_per_s, rate.host_memory_bytes_per_s)
    work = [
        Work(name=kind.value, resource=kind, amount=amount * each, when=When.STEP, pipelined=True)
        for (kind, amount), each in zip(seconds.items(), per_s, strict=True)
    ]
    alone = replace(work[1], amount=work[1].amount / 4, pipelined=False)
    step = priced([*work, alone])
    assert step.step_s == pytest.approx(2.0 + 0.25)
    assert sum(term.exposed_s for term in step.terms) == pytest.approx(step.step_s)
    parts = price_parts([*work, alone], NODE, nodes=1, ranks_per_node=8, gradient_accumulation_steps=1, layers=LAYERS)
    assert sum(part.times * max(part.bounds_s) for part in parts) == pytest.approx(step.step_s)


def test_gpus_share_an_uplink_to_the_host() -> None:
    """A100 boards: two GPUs to an uplink, so each gets half where both copy, all where one does; H100 boards: one."""
    a100, h100 = (find_gpu(name) for name in ("a100-80", "h100"))
    for gpu, ranks, share in ((a100, 8, 0.5), (a100, 1, 1.0), (h100, 8, 1.0)):
        node = replace(NODE, gpu=gpu)
        whole = gpu.host_link_bytes_per_s * value("host_link", "share")
        assert host_link_bytes_per_s(node, ranks) == pytest.approx(share * whole)
        assert pageable_bytes_per_s(node, ranks) <= host_link_bytes_per_s(node, ranks)


def test_once_work_hides_behind_the_last_micro_step() -> None:
    """A reduction at the boundary lengthens the last backward pass only."""
    share = value("overlap", "interference")
    step = priced([memory(1.0, When.BACKWARD), gather(0.1, When.BACKWARD, once=True)], micro_steps=4)
    assert step.step_s == pytest.approx(4 * 1.0 + share * 0.1, rel=1e-3)


def test_optimizer_step_hides_nothing() -> None:
    """Side work at the optimizer step adds all its time."""
    update = Work(name="adam", resource=Resource.MEMORY, amount=SECOND, when=When.STEP)
    assert priced([update, gather(0.2, When.STEP)]).step_s == pytest.approx(1.2, rel=1e-3)


def test_launches_count_only_where_they_are_slower() -> None:
    """The host's launches hide behind long kernels and set the pace of short ones."""
    kernels = Work(name="launches", resource=Resource.LAUNCH, amount=1000, when=When.FORWARD)
    launch_s = 1000 * value("launch", "seconds")
    assert priced([memory(1.0), kernels]).step_s == pytest.approx(1.0)
    assert priced([memory(launch_s / 10), kernels]).step_s == pytest.approx(launch_s)


WORK = st.builds(
    Work,
    name=st.sampled_from(["a", "b", "c"]),
    resource=st.sampled_from(list(Resource)),
    amount=st.floats(0, 1e12),
    when=st.sampled_from(list(When)),
    once=st.booleans(),
    side=st.booleans(),
    message_bytes=st.sampled_from([0.0, 1e6, 1e9]),
)


@given(st.lists(WORK, max_size=12), st.integers(1, 9))
def test_exposed_terms_add_up_to_the_step(work: list[Work], micro_steps: int) -> None:
    """What the terms show is all of the step's time, and never more than they take."""
    step = priced(work, micro_steps)
    assert sum(t.exposed_s for t in step.terms) == pytest.approx(step.step_s)
    assert all(t.exposed_s <= t.seconds_per_step * (1 + 1e-9) for t in step.terms)
    assert all(t.ground.source for t in step.terms)


@given(st.lists(WORK, max_size=12), st.integers(1, 9))
def test_parts_are_the_step(work: list[Work], micro_steps: int) -> None:
    """The linear bounds of each part, times how often it happens, give the same step: the program may use them."""
    parts = price_parts(work, NODE, nodes=1, ranks_per_node=8, gradient_accumulation_steps=micro_steps, layers=LAYERS)
    assert sum(p.times * max(p.bounds_s) for p in parts) == pytest.approx(priced(work, micro_steps).step_s)


@given(st.lists(WORK, max_size=8), WORK, st.integers(1, 9))
def test_more_work_is_never_faster(work: list[Work], more: Work, micro_steps: int) -> None:
    """Adding work to a step cannot shorten it: what more compute hides is at most what it takes."""
    before, after = priced(work, micro_steps).step_s, priced([*work, more], micro_steps).step_s
    assert after >= before * (1 - 1e-9)


def test_hiding_is_bounded() -> None:
    """More compute hides at most what it adds, so that no step gets shorter; interference is a share."""
    assert value("overlap", "interference") <= 1.0
    assert exposed_s(1.0, 1.0, 10.0, layers=5, interference=0.5) == 0.5
    assert exposed_s(1.0, 0.0, 10.0, layers=5, interference=0.5) == 0.2  # the first layer's


def test_large_multiplications_reach_the_sustained_share() -> None:
    """8192 cubed comes within 8 % of what the power limit lets through: 400 W x FLOP per joule."""
    seconds = matmul_s_per_flop(rates(NODE, 8, Precision.BF16), (8192, 8192, 8192))
    assert 0.92 < 1 / seconds / (400 * value("matmul_energy", "ampere-sm80")) < 1.0


def test_a_lower_power_limit_slows_multiplications() -> None:
    """At half the power half the rate, where power is what limits; a card that draws little reaches its ceiling."""
    whole, half = (rates(replace(NODE, gpu=replace(GPU, tdp_w=w)), 8, Precision.BF16) for w in (400, 200))
    assert half.matmul_flop_per_s == pytest.approx(whole.matmul_flop_per_s / 2)
    cool = rates(replace(NODE, gpu=replace(GPU, tdp_w=10_000)), 8, Precision.BF16)
    assert cool.matmul_flop_per_s == pytest.approx(312e12 * 0.869 * value("matmul_sustained", "other"))


def test_rows_that_are_no_whole_lines_are_slower() -> None:
    """1800 elements are 3600 bytes, whole 16-byte vectors but no whole 128-byte lines; 108 are not even vectors."""
    assert alignment_share((4096, 14336, 14336), 2) == 1.0
    assert alignment_share((4096, 1800, 14336), 2) == value("matmul_alignment", "vector")
    assert alignment_share((4096, 4096, 108), 2) == value("matmul_alignment", "none")
    assert alignment_share((4096, 50257, 768), 2) == value("matmul_alignment", "none")


def test_low_precision_multiplies_faster_where_the_gpu_has_units() -> None:
    """8-bit operands on H100 take less time, on A100 as long as 16-bit ones."""
    shape = (8192, 8192, 8192)
    hopper = rates(replace(NODE, gpu=find_gpu("h100")), 8, Precision.BF16)
    ampere = rates(NODE, 8, Precision.BF16)
    assert matmul_s_per_flop(hopper, shape, 8) < 0.7 * matmul_s_per_flop(hopper, shape)
    assert matmul_s_per_flop(ampere, shape, 8) == matmul_s_per_flop(ampere, shape)


@given(st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300)), st.integers(0, 2), st.integers(1, 8))
def test_larger_multiplications_never_take_less_time(shape: tuple[int, int, int], axis: int, factor: int) -> None:
    """A call with a longer side takes at least as long, rows of whole lines given."""
    rate = rates(NODE, 8, Precision.BF16)
    shape = tuple(64 * size for size in shape)  # type: ignore[assignment]
    longer = tuple(size * factor if i == axis else size for i, size in enumerate(shape))
    seconds = [2.0 * m * n * k * matmul_s_per_flop(rate, (m, n, k)) for m, n, k in (shape, longer)]
    assert seconds[1] >= seconds[0] * (1 - 1e-9)


def test_thin_multiplications_are_bound_by_memory() -> None:
    """The down-projection of a LoRA adapter of rank 8 takes as long as reading its input."""
    rate = rates(NODE, 8, Precision.BF16)
    read_s = 2 * 8192 * 4096 / SECOND
    assert 2.0 * 8192 * 8 * 4096 * matmul_s_per_flop(rate, (8192, 8, 4096)) == pytest.approx(read_s, rel=0.01)


def test_share_is_a_share() -> None:
    """Whole waves of the largest tile are full; one tile more adds a wave; few rows take smaller tiles."""
    whole = {"multiprocessors": 4, "half_k": 64}
    assert matmul_share((512, 256, 64), **whole) == 1 / 2  # 4 tiles of 256 x 128, one wave; half of k's loop
    assert matmul_share((512, 384, 64), **whole) == pytest.approx(1 / 2 * 0.93 * 12 / 12)  # 12 tiles of 128 x 128
    assert matmul_share((32, 256, 64), **whole) == pytest.approx(1 / 2 * value("matmul_tile", "64x32"))  # 4 of 32 x 64


def test_measured_matmuls_are_near() -> None:
    """The shape curve against A100 measurements, sustained share apart: within 8 % for 4096 to 16384 cubed.

    Source: Azure/AI-benchmarking-guide 8fd0c6e (2024-09-27), cuBLASLt bf16 on A100: 228, 253.7 and 256.5 TFLOP/s.
    """
    for size, measured in ((4096, 228e12), (8192, 253.7e12), (16384, 256.5e12)):
        share = matmul_share((size, size, size), multiprocessors=108, half_k=value("matmul_shape", "half_k"))
        assert 312e12 * 0.869 * share == pytest.approx(measured, rel=0.08)


def test_a_gpu_without_units_is_refused() -> None:
    """A GPU with no bf16 rate has no time: a reason is given, and pricing raises it."""
    old = replace(GPU, name="v100", bf16_flop_per_s=None)
    reason = refusal(old, Precision.BF16)
    assert reason is not None
    assert "v100" in reason
    assert refusal(old, Precision.FP16) is None
    with pytest.raises(ValueError, match="no bf16 units"):
        price([], replace(NODE, gpu=old), nodes=1, ranks_per_node=1, gradient_accumulation_steps=1, layers=LAYERS)


def test_cpu_optimizers_share_the_hosts_memory() -> None:
    """A node of 96 vCPUs moves 96 x 3 GB/s x 0.22; eight ranks share it; unknown vCPUs are taken as 12 per GPU."""
    assert cpu_optimizer_bytes_per_s(NODE, 1) == pytest.approx(96 * 3e9 * 0.22)
    assert cpu_optimizer_bytes_per_s(replace(NODE, vcpus=None), 1) == cpu_optimizer_bytes_per_s(NODE, 1)
    adam = Work(name="adam", resource=Resource.HOST_MEMORY, amount=1e9, when=When.STEP)
    assert priced([adam]).step_s == pytest.approx(8 * 1e9 / (96 * 3e9 * 0.22))


def test_cpu_adam_as_measured() -> None:
    """18e9 parameters per node of 8 A100 took about 10 s (DeepSpeed#6834): 34 bytes each, within 35 %."""
    node = replace(NODE, vcpus=128)
    assert 18e9 * 34 / cpu_optimizer_bytes_per_s(node, 1) == pytest.approx(10, rel=0.35)


def test_drives_follow_the_generation_of_the_host_link() -> None:
    """PCIe 5 hosts are taken to have drives of 6 GB/s per GPU, PCIe 4 hosts 1.16."""
    read = Work(name="read", resource=Resource.NVME_READ, amount=6e9, when=When.STEP)
    modern = replace(NODE, gpu=replace(GPU, host_link_bytes_per_s=63e9))
    times = [
        price([read], node, nodes=1, ranks_per_node=8, gradient_accumulation_steps=1, layers=LAYERS).step_s
        for node in (modern, NODE)
    ]
    assert times == pytest.approx([1.0, 6 / 1.16])
