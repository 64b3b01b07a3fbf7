"""planner/time.py and planner/network.py: seconds from amounts of work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.catalog import find_gpu
from trainplan.planner.efficiency import value
from trainplan.planner.hardware import Gpu, Node
from trainplan.planner.host_rates import cpu_optimizer_bytes_per_s, host_link_bytes_per_s, pageable_bytes_per_s
from trainplan.planner.network import COLLECTIVES, bus_bytes_per_s, collective_s, latency_s
from trainplan.planner.time import (
    StepTime,
    exposed_s,
    matmul_s_per_flop,
    matmul_share,
    price,
    price_parts,
    rates,
    refusal,
)
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
SECOND = 2e12 * 0.85  # bytes of GPU memory traffic that take one second: bandwidth x measured share
GATHER_SECOND = 300e9 * 0.80 * 8 / 7  # bytes whose all-gather over 8 GPUs takes one second, latency apart


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
    return price(work, NODE, nodes=1, ranks_per_node=8, gradient_accumulation_steps=micro_steps)


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
    """Beyond the overlap share of the compute, side work adds to the part."""
    assert priced([memory(1.0), gather(5.0)]).step_s == pytest.approx(1.0 + 5.0 - value("overlap", "share"), rel=1e-3)


def test_work_on_the_main_stream_is_not_hidden() -> None:
    """A collective that is not side work adds all its time."""
    assert priced([memory(1.0), gather(0.1, side=False)]).step_s == pytest.approx(1.1, rel=1e-3)


def test_copies_to_the_host_hide_without_interference() -> None:
    """Copy engines take no multiprocessors."""
    copy = Work(name="copy", resource=Resource.GPU_TO_HOST, amount=0.1 * 31e9 * 0.88, when=When.FORWARD, side=True)
    assert priced([memory(1.0), copy]).step_s == pytest.approx(1.0)


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
    parts = price_parts([*work, alone], NODE, nodes=1, ranks_per_node=8, gradient_accumulation_steps=1)
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
    assert all(t.source for t in step.terms)


@given(st.lists(WORK, max_size=12), st.integers(1, 9))
def test_parts_are_the_step(work: list[Work], micro_steps: int) -> None:
    """The linear bounds of each part, times how often it happens, give the same step: the program may use them."""
    parts = price_parts(work, NODE, nodes=1, ranks_per_node=8, gradient_accumulation_steps=micro_steps)
    assert sum(p.times * max(p.bounds_s) for p in parts) == pytest.approx(priced(work, micro_steps).step_s)


@given(st.lists(WORK, max_size=8), WORK, st.integers(1, 9))
def test_more_work_is_never_faster(work: list[Work], more: Work, micro_steps: int) -> None:
    """Adding work to a step cannot shorten it: what more compute hides is at most what it takes."""
    before, after = priced(work, micro_steps).step_s, priced([*work, more], micro_steps).step_s
    assert after >= before * (1 - 1e-9)


def test_hiding_is_bounded() -> None:
    """More compute hides at most what it adds: with an overlap share of at most one, no step gets shorter."""
    assert value("overlap", "share") <= 1.0
    assert value("overlap", "interference") <= 1.0
    assert exposed_s(1.0, 1.0, 10.0, overlap=0.8, interference=0.5) == 0.5


def test_large_multiplications_reach_the_sustained_share() -> None:
    """8192 cubed comes within 5 % of peak x ceiling x sustained share."""
    seconds = matmul_s_per_flop(rates(NODE, 8, Precision.BF16), (8192, 8192, 8192))
    assert 0.95 < 1 / seconds / (312e12 * 0.869 * value("matmul_sustained", "ampere")) < 1.0


@given(
    st.tuples(st.integers(1, 20000), st.integers(1, 20000), st.integers(1, 20000)), st.integers(0, 2), st.integers(1, 8)
)
def test_larger_multiplications_never_take_less_time(shape: tuple[int, int, int], axis: int, factor: int) -> None:
    """A call with a longer side takes at least as long."""
    rate = rates(NODE, 8, Precision.BF16)
    longer = tuple(size * factor if i == axis else size for i, size in enumerate(shape))
    seconds = [2.0 * m * n * k * matmul_s_per_flop(rate, (m, n, k)) for m, n, k in (shape, longer)]
    assert seconds[1] >= seconds[0] * (1 - 1e-9)


def test_thin_multiplications_are_bound_by_memory() -> None:
    """The down-projection of a LoRA adapter of rank 8 takes as long as reading its input."""
    rate = rates(NODE, 8, Precision.BF16)
    read_s = 2 * 8192 * 4096 / SECOND
    assert 2.0 * 8192 * 8 * 4096 * matmul_s_per_flop(rate, (8192, 8, 4096)) == pytest.approx(read_s, rel=0.01)


def test_share_is_a_share() -> None:
    """A side just above one tile half fills two; below one tile smaller tiles are used."""
    unit = {"tile": 128, "smallest_tile": 32, "half_k": 64, "wave_tiles": 1}
    assert matmul_share((128, 128, 64), **unit) == 1 / 2 * 1 / 2
    assert matmul_share((16, 128, 64), **unit) == 1 / 2 * 1 / 2 * 16 / 32
    assert matmul_share((129, 128, 64), **unit) == pytest.approx(1 / 2 * 2 / 3 * 129 / 256)


def test_measured_matmuls_are_near() -> None:
    """The shape curve against A100 measurements, sustained share apart: within 8 % for 4096 to 16384 cubed.

    Source: Azure/AI-benchmarking-guide 8fd0c6e (2024-09-27), cuBLASLt bf16 on A100: 228, 253.7 and 256.5 TFLOP/s.
    """
    for size, measured in ((4096, 228e12), (8192, 253.7e12), (16384, 256.5e12)):
        share = matmul_share(
            (size, size, size),
            tile=value("matmul_shape", "tile"),
            smallest_tile=value("matmul_shape", "smallest_tile"),
            half_k=value("matmul_shape", "half_k"),
            wave_tiles=value("matmul_shape", "wave_tiles"),
        )
        assert 312e12 * 0.869 * share == pytest.approx(measured, rel=0.08)


def test_a_gpu_without_units_is_refused() -> None:
    """A GPU with no bf16 rate has no time: a reason is given, and pricing raises it."""
    old = replace(GPU, name="v100", bf16_flop_per_s=None)
    reason = refusal(old, Precision.BF16)
    assert reason is not None
    assert "v100" in reason
    assert refusal(old, Precision.FP16) is None
    with pytest.raises(ValueError, match="no bf16 units"):
        price([], replace(NODE, gpu=old), nodes=1, ranks_per_node=1, gradient_accumulation_steps=1)


@pytest.mark.parametrize(("kind", "passes"), [(Resource.ALL_REDUCE, 2), (Resource.ALL_GATHER, 1)])
def test_ring_inside_a_node(kind: Resource, passes: int) -> None:
    """8 ranks: passes x 7/8 of the buffer over the link's share, plus a latency per hop."""
    seconds = collective_s(kind, 8e9, nodes=1, ranks_per_node=8, node=NODE)
    assert seconds == pytest.approx(passes * (7 / 8 * 8e9 / (300e9 * 0.80) + 7 * 3.5e-6))


def test_ring_across_nodes_is_bound_by_the_node() -> None:
    """4 nodes of 8: 31/32 of the buffer cross each node's 100 GB/s."""
    seconds = collective_s(Resource.ALL_GATHER, 32e9, nodes=4, ranks_per_node=8, node=NODE)
    assert seconds == pytest.approx(31 / 32 * 32e9 / (100e9 * 0.85) + latency_s(Resource.ALL_GATHER, 4, 8))


def test_two_nodes_all_reduce_over_a_tree() -> None:
    """p4de, 50 GB/s: 78.3 GB/s bus bandwidth was measured; a ring could not pass 50."""
    slow = replace(NODE, internode_bytes_per_s=50e9)
    seconds = collective_s(Resource.ALL_REDUCE, 2 * 2**30, nodes=2, ranks_per_node=8, node=slow)
    assert 2 * 15 / 16 * 2 * 2**30 / seconds == pytest.approx(78.3e9, rel=0.05)


def test_four_nodes_all_reduce_as_measured() -> None:
    """p6-b200, 400 GB/s: 362.0 GB/s bus bandwidth at 1 GiB, 64 at 16 MiB; the model is within 25 %."""
    b200 = replace(HOPPER, architecture="Blackwell sm100", link_bytes_per_s=900e9)
    fast = replace(NODE, gpu=b200, internode_bytes_per_s=400e9)
    for size, measured in ((2**30, 362.0e9), (2**24, 64e9)):
        seconds = collective_s(Resource.ALL_REDUCE, size, nodes=4, ranks_per_node=8, node=fast)
        assert 2 * 31 / 32 * size / seconds == pytest.approx(measured, rel=0.25)


def test_one_rank_and_no_bytes_take_no_time() -> None:
    """A collective of one rank, or of nothing, is free."""
    for kind in COLLECTIVES:
        assert collective_s(kind, 1e9, nodes=1, ranks_per_node=1, node=NODE) == 0
        assert collective_s(kind, 0, nodes=2, ranks_per_node=8, node=NODE) == 0


def test_small_messages_pay_latency_each() -> None:
    """The same bytes in more calls take longer, by one latency per call."""
    few, many = (
        collective_s(Resource.ALL_GATHER, 1e9, message_bytes=m, nodes=1, ranks_per_node=8, node=NODE)
        for m in (1e9, 1e6)
    )
    assert many - few == pytest.approx(999 * 7 * 3.5e-6)


def test_unknown_network_between_nodes_is_an_error() -> None:
    """Several nodes need a known network; the message names the GPU and the field."""
    alone = replace(NODE, internode_bytes_per_s=None)
    assert collective_s(Resource.ALL_GATHER, 1e9, nodes=1, ranks_per_node=8, node=alone) > 0
    with pytest.raises(ValueError, match=r"a100-80.*internode_bytes_per_s"):
        collective_s(Resource.ALL_GATHER, 1e9, nodes=2, ranks_per_node=8, node=alone)


def test_the_switch_speeds_up_all_reduce_only() -> None:
    """NVLink SHARP: Hopper and later, all 8 ranks, all-reduce."""
    gathered = bus_bytes_per_s(HOPPER, 8, Resource.ALL_GATHER)
    assert gathered == pytest.approx(450e9 * 0.80)
    assert bus_bytes_per_s(HOPPER, 8, Resource.ALL_REDUCE) == pytest.approx(1.29 * gathered)
    assert bus_bytes_per_s(HOPPER, 4, Resource.ALL_REDUCE) == gathered
    assert bus_bytes_per_s(GPU, 8, Resource.ALL_REDUCE) == bus_bytes_per_s(GPU, 8, Resource.ALL_GATHER)


def test_slow_links() -> None:
    """PCIe boxes reach 0.45 of the host link, bridged pairs no more beyond two, a mesh one wire per peer."""
    pcie = replace(GPU, full_name="RTX-5090-32GB", link="PCIe", nvswitch=False, host_link_bytes_per_s=63e9)
    assert bus_bytes_per_s(pcie, 8, Resource.ALL_REDUCE) == pytest.approx(28e9, rel=0.02)
    bridged = replace(pcie, full_name="H100-NVL-94GB", link="NVLink bridge", link_bytes_per_s=300e9)
    assert bus_bytes_per_s(bridged, 2, Resource.ALL_GATHER) == pytest.approx(240e9)
    assert bus_bytes_per_s(bridged, 4, Resource.ALL_GATHER) == pytest.approx(28e9, rel=0.02)
    mesh = replace(pcie, link="xGMI", link_bytes_per_s=448e9)
    assert bus_bytes_per_s(mesh, 8, Resource.ALL_REDUCE) == pytest.approx(312.9e9, rel=0.01)
    assert bus_bytes_per_s(mesh, 2, Resource.ALL_REDUCE) == pytest.approx(47.7e9, rel=0.07)


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
        price([read], node, nodes=1, ranks_per_node=8, gradient_accumulation_steps=1).step_s for node in (modern, NODE)
    ]
    assert times == pytest.approx([1.0, 6 / 1.16])
