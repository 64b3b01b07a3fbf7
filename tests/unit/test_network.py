"""planner/time/network.py and planner/time/fabrics.py: seconds of collectives, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainplan.planner.catalog import find_gpu, find_offers
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Node
from trainplan.planner.time.fabrics import fabrics, named_fabric, offered_fabric
from trainplan.planner.time.network import COLLECTIVES, bus_bytes_per_s, collective_s, rests_on, straggler_factor
from trainplan.planner.work import Resource


def node(gpu: str = "a100-80", *, gpus: int = 8, net: float | None = 100e9, fabric: str | None = "infiniband") -> Node:
    """A machine whose figures the tests below spell out: 300 GB/s of NVLink3 at 0.783, 100 GB/s of NICs at 0.94."""
    return Node(
        gpu=find_gpu(gpu),
        gpus=gpus,
        host_memory_bytes=None,
        vcpus=None,
        nvme_bytes=None,
        internode_bytes_per_s=net,
        fabric=fabric,
    )


def ramped(size: float, ramp: float) -> float:
    """What the pipeline's ramp makes of a wire time."""
    return 1 + ramp / (size + ramp)


@pytest.mark.parametrize(
    ("kind", "passes"), [(Resource.ALL_REDUCE, 2), (Resource.ALL_GATHER, 1), (Resource.REDUCE_SCATTER, 1)]
)
def test_ring_inside_a_node(kind: Resource, passes: int) -> None:
    """8 ranks: passes x 7/8 of the buffer over the link's share, 6 us for the call and 2 us for each of 7 hops."""
    seconds = collective_s(kind, 8e9, nodes=1, ranks_per_node=8, node=node())
    wire = passes * 7 / 8 * 8e9 / (300e9 * 0.783) * ramped(8e9, 3.4e7)
    assert seconds == pytest.approx(6e-6 + passes * 7 * 2e-6 + wire)


def test_ring_across_nodes_is_bound_by_the_nics() -> None:
    """4 nodes of 8: 31/32 of the buffer cross each node's NICs; 28 hops inside, 3 across."""
    seconds = collective_s(Resource.ALL_GATHER, 32e9, nodes=4, ranks_per_node=8, node=node())
    wire = 31 / 32 * 32e9 / (100e9 * 0.94) * ramped(32e9, 7.8e7)
    assert seconds == pytest.approx(6e-6 + 28 * 2e-6 + 3 * 9.6e-6 + wire)


def test_two_nodes_all_reduce_over_a_tree() -> None:
    """Each node sends its sum once, where a ring would send 2 x 15/16 of it."""
    seconds = collective_s(Resource.ALL_REDUCE, 8e9, nodes=2, ranks_per_node=8, node=node())
    wire = 8e9 / (100e9 * 0.94) * ramped(8e9, 7.8e7)
    assert seconds == pytest.approx(6e-6 + 2 * (7 * 2e-6 + 9.6e-6) + wire)


def test_a_small_all_reduce_of_many_nodes_is_a_tree() -> None:
    """64 nodes, 1 MB: 2 x (7 x 2 + 6 x 9.6) us of hops; a ring would take 2 x (448 x 2 + 63 x 9.6)."""
    seconds = collective_s(Resource.ALL_REDUCE, 1e6, nodes=64, ranks_per_node=8, node=node())
    assert seconds == pytest.approx(6e-6 + 2 * (7 * 2e-6 + 6 * 9.6e-6) + 2e6 / 94e9 * ramped(1e6, 7.8e7))


def test_a_large_all_reduce_of_many_nodes_is_a_ring() -> None:
    """4 nodes, 80 GB: 2 x 31/32 of the buffer instead of the tree's 2."""
    seconds = collective_s(Resource.ALL_REDUCE, 80e9, nodes=4, ranks_per_node=8, node=node())
    wire = 2 * 31 / 32 * 80e9 / 94e9 * ramped(80e9, 7.8e7)
    assert seconds == pytest.approx(6e-6 + 2 * (28 * 2e-6 + 3 * 9.6e-6) + wire)


def test_all_to_all_sends_through_each_ranks_own_nics() -> None:
    """2 nodes of 8: 8/16 of a rank's buffer through 1/8 of the NICs; inside, 7/16 over NVLink at the same time."""
    seconds = collective_s(Resource.ALL_TO_ALL, 1.6e9, nodes=2, ranks_per_node=8, node=node())
    assert seconds == pytest.approx(6e-6 + 7 * 2e-6 + 9.6e-6 + 0.8e9 / (100e9 / 8 * 0.94))
    seconds = collective_s(Resource.ALL_TO_ALL, 1.6e9, nodes=1, ranks_per_node=8, node=node())
    assert seconds == pytest.approx(6e-6 + 7 * 2e-6 + 7 / 8 * 1.6e9 / (300e9 * 0.783))


def test_send_takes_one_hop() -> None:
    """Inside, the peer copy's share of NVLink; across, one GPU's part of the NICs."""
    inside = collective_s(Resource.SEND, 1e9, nodes=1, ranks_per_node=4, node=node())
    across = collective_s(Resource.SEND, 1e9, nodes=2, ranks_per_node=1, node=node())
    assert inside == pytest.approx(6e-6 + 2e-6 + 1e9 / (300e9 * 0.913))
    assert across == pytest.approx(6e-6 + 9.6e-6 + 1e9 / (100e9 / 8 * 0.94))


def test_groups_of_a_node_share_its_nics() -> None:
    """One rank a node in each of 8 nodes: its node's 7 other GPUs do the same, so it has an eighth of the NICs."""
    seconds = collective_s(Resource.ALL_GATHER, 8e9, nodes=8, ranks_per_node=1, node=node())
    wire = 7 / 8 * 8e9 / (100e9 / 8 * 0.94) * ramped(8e9, 7.8e7)
    assert seconds == pytest.approx(6e-6 + 7 * 9.6e-6 + wire)


def test_one_rank_and_no_bytes_take_no_time() -> None:
    """A collective of one rank, or of nothing, is free and rests on nothing."""
    for kind in COLLECTIVES:
        assert collective_s(kind, 1e9, nodes=1, ranks_per_node=1, node=node()) == 0
        assert collective_s(kind, 0, nodes=2, ranks_per_node=8, node=node()) == 0
        assert rests_on(kind, node(), 1, 1) == ()
    with pytest.raises(ValueError, match="two ranks"):
        bus_bytes_per_s(Resource.ALL_GATHER, 1e9, nodes=1, ranks_per_node=1, node=node())


def test_each_call_pays_its_latency() -> None:
    """10 calls of 1e8 bytes: ten times one call."""
    one = collective_s(Resource.ALL_GATHER, 1e8, nodes=1, ranks_per_node=8, node=node())
    ten = collective_s(Resource.ALL_GATHER, 1e9, message_bytes=1e8, nodes=1, ranks_per_node=8, node=node())
    assert ten == pytest.approx(10 * one)


def test_unknown_rate_between_nodes_is_an_error() -> None:
    """Several nodes need a known rate; the message names the GPU and the field."""
    alone = node(net=None)
    assert collective_s(Resource.ALL_GATHER, 1e9, nodes=1, ranks_per_node=8, node=alone) > 0
    with pytest.raises(ValueError, match=r"a100-80.*internode_bytes_per_s"):
        collective_s(Resource.ALL_GATHER, 1e9, nodes=2, ranks_per_node=8, node=alone)


def test_unknown_fabric_is_the_slowest() -> None:
    """A network that nobody named is never quicker than a named one; a wrong name is refused with what is allowed."""
    unnamed = collective_s(Resource.ALL_GATHER, 1e9, nodes=2, ranks_per_node=8, node=node(fabric=None))
    for name in fabrics("between"):
        named = collective_s(Resource.ALL_GATHER, 1e9, nodes=2, ranks_per_node=8, node=node(fabric=name))
        assert named <= unnamed
    with pytest.raises(InputError, match=r"got infiband; allowed are efa-v1.*did you mean infiniband"):
        collective_s(Resource.ALL_GATHER, 1e9, nodes=2, ranks_per_node=8, node=node(fabric="infiband"))


def test_the_switch_speeds_up_all_reduce_only() -> None:
    """H200 of 450 GB/s at 0.81: gain 1.29 with 8 ranks, 1.14 with 5, none with 4, none without the switch's sums."""

    def bus(kind: Resource, ranks: int, gpu: str = "h200") -> float:
        return bus_bytes_per_s(kind, 1e15, nodes=1, ranks_per_node=ranks, node=node(gpu))

    for ranks, gain in ((4, 1.0), (5, 1.14), (6, 1.19), (7, 1.26), (8, 1.29)):
        assert bus(Resource.ALL_REDUCE, ranks) == pytest.approx(450e9 * 0.81 * gain, rel=1e-4)
        assert bus(Resource.ALL_GATHER, ranks) == pytest.approx(450e9 * 0.81, rel=1e-4)
    assert bus(Resource.ALL_REDUCE, 8, "a100-80") == pytest.approx(300e9 * 0.783, rel=1e-4)


def test_slow_links() -> None:
    """PCIe by number of ranks; a bridge joins two, beyond it is PCIe; a mesh has a wire for each peer."""

    def bus(machine: Node, ranks: int) -> float:
        return bus_bytes_per_s(Resource.ALL_GATHER, 1e15, nodes=1, ranks_per_node=ranks, node=machine)

    assert bus(node("5090"), 8) == pytest.approx(28e9, rel=1e-2)
    assert bus(node("5090"), 4) == pytest.approx(35e9, rel=1e-2)
    assert bus(node("5090"), 6) == pytest.approx(bus(node("5090"), 8))  # 6 was not measured: the worse neighbour
    bridged = replace(node(), gpu=replace(find_gpu("h100-pcie"), link="NVLink bridge", link_bytes_per_s=300e9))
    assert bus(bridged, 2) == pytest.approx(115.5e9, rel=1e-3)
    assert bus(bridged, 8) == pytest.approx(63e9 * 0.444, rel=1e-3)
    assert bus(node("mi300x"), 2) == pytest.approx(64e9 * 0.745, rel=1e-3)
    assert bus(node("mi300x"), 8) == pytest.approx(448e9 * 0.698, rel=1e-3)


def test_a_rack_is_one_domain() -> None:
    """18 nodes of 4 GB200 need no network; 36 nodes are two racks of 72 ranks that share all their nodes' NICs."""
    rack = node("gb200", gpus=4, net=None)
    seconds = collective_s(Resource.ALL_GATHER, 72e9, nodes=18, ranks_per_node=4, node=rack)
    assert seconds == pytest.approx(6e-6 + 71 * 2.9e-6 + 71e9 / (900e9 * 0.758) * ramped(72e9, 1.87e8))
    with pytest.raises(ValueError, match="internode_bytes_per_s"):
        collective_s(Resource.ALL_GATHER, 72e9, nodes=19, ranks_per_node=4, node=rack)
    joined = node("gb200", gpus=4, net=200e9)
    seconds = collective_s(Resource.ALL_GATHER, 144e9, nodes=36, ranks_per_node=4, node=joined)
    wire = max(143e9 / (900e9 * 0.758), 143e9 / (18 * 200e9 * 0.94)) * ramped(144e9, 7.8e7)
    assert seconds == pytest.approx(6e-6 + 142 * 2.9e-6 + 9.6e-6 + wire)


def test_what_a_collective_rests_on() -> None:
    """The figures used, the most doubtful last; each has a source and a date."""
    inside = rests_on(Resource.ALL_REDUCE, node("h100"), 1, 8)
    assert [f.name for f in inside] == [
        "nvlink4.share", "nvlink4.gain", "nvlink4.hop_s", "nvlink4.ramp_bytes", "call_s",
    ]  # fmt: skip
    assert [f.kind for f in inside] == ["measured", "measured", "fitted", "fitted", "assumed"]
    across = {f.name for f in rests_on(Resource.ALL_GATHER, node("h100"), 2, 8)}
    assert across == {
        "nvlink4.share", "nvlink4.hop_s", "infiniband.share", "infiniband.hop_s", "infiniband.ramp_bytes", "call_s",
    }  # fmt: skip
    for kind in COLLECTIVES:
        assert all(f.source and f.date and f.unit for f in rests_on(kind, node("mi300x", fabric=None), 2, 8))


def test_offers_carry_their_fabric() -> None:
    """Clouds whose network is known name it; the others name nothing, and nothing is guessed."""
    assert find_offers("aws/p5.48xlarge")[0].node.fabric == "efa-v2"
    assert find_offers("gcp/a3-highgpu-8g")[0].node.fabric == "tcpx"
    assert find_offers("azure/Standard_ND96isr_H100_v5")[0].node.fabric == "infiniband"
    assert offered_fabric("aws", "p5en.48xlarge") == "efa-v3"
    assert offered_fabric("vast", "8x A100-80") is None
    assert named_fabric("NVLink4 intra; 4 OmniPath 100Gb/s links per node") == "omni-path"
    assert named_fabric("8 x 100 Gbit") is None


def test_every_mapping_names_a_fabric() -> None:
    """Words and offers of configs/fabrics.toml lead to rows that exist."""
    import tomllib
    from importlib.resources import files

    text = files("trainplan.configs").joinpath("fabrics.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    named = {*table["words"].values(), *(row["fabric"] for row in table["offers"])}
    assert named <= set(fabrics("between"))
    assert all(row["source"] for row in table["offers"])


def test_stragglers_cost_a_share_per_doubling() -> None:
    """Nothing up to 8 ranks, 1 / (1 - 0.004) on 16, its cube on 64."""
    assert straggler_factor(1) == straggler_factor(8) == 1.0
    assert straggler_factor(16) == pytest.approx(1 / 0.996)
    assert straggler_factor(64) == pytest.approx(1 / 0.996**3)
