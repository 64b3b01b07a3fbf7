"""Laws of planner/time/network.py, for every fabric, GPU and group."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.catalog import find_gpu
from trainplan.planner.hardware import Node
from trainplan.planner.time.fabrics import fabrics, inside_fabric
from trainplan.planner.time.network import COLLECTIVES, collective_s, straggler_factor
from trainplan.planner.work import Resource

GPUS = ("v100-32", "a100-80", "h100", "h100-pcie", "b200", "gb200", "5090", "4090", "mi300x", "gh200", "gaudi2")
SLACK = 1 + 1e-9


@st.composite
def machines(draw: st.DrawFn) -> Node:
    """Nodes of 4 to 16 GPUs on any fabric, 10 to 6400 Gbit/s."""
    return Node(
        gpu=find_gpu(draw(st.sampled_from(GPUS))),
        gpus=draw(st.sampled_from((4, 8, 16))),
        host_memory_bytes=None,
        vcpus=None,
        nvme_bytes=None,
        internode_bytes_per_s=draw(st.floats(1.25e9, 8e11)),
        fabric=draw(st.sampled_from((None, *fabrics("between")))),
    )


KINDS = st.sampled_from(COLLECTIVES)
SIZES = st.floats(1.0, 1e12)
NODES = st.integers(1, 64)


def of(kind: Resource, size: float, node: Node, nodes: int, ranks: int, message: float = 0.0) -> float:
    """Seconds, with the ranks that the node has at most."""
    group = min(ranks, node.gpus)
    return collective_s(kind, size, message_bytes=message, nodes=nodes, ranks_per_node=group, node=node)


@given(KINDS, SIZES, st.floats(1.0, 100.0), machines(), NODES, st.integers(1, 16))
def test_more_bytes_take_longer(kind: Resource, size: float, more: float, node: Node, nodes: int, ranks: int) -> None:
    """Seconds never fall with the bytes."""
    assert of(kind, size, node, nodes, ranks) <= of(kind, size * more, node, nodes, ranks) * SLACK


@given(KINDS, SIZES, st.integers(1, 1000), machines(), NODES, st.integers(1, 16))
def test_one_big_message_is_never_slower_than_many_small(
    kind: Resource, size: float, calls: int, node: Node, nodes: int, ranks: int
) -> None:
    """The same bytes in more calls never take less time."""
    assert of(kind, size, node, nodes, ranks) <= of(kind, size, node, nodes, ranks, size / calls) * SLACK


@given(KINDS, SIZES, machines(), NODES, st.integers(1, 16))
def test_more_nodes_take_longer(kind: Resource, size: float, node: Node, nodes: int, ranks: int) -> None:
    """The same ranks in each node of twice as many nodes never take less time.

    All but two: racks, where more nodes are more NICs and the switch sums more, and an all-to-all whose NICs are not
    slow beside the link: it uses both at once.
    """
    if inside_fabric(node.gpu, 2).domain_gpus:
        return
    nics = node.internode_bytes_per_s / node.gpus
    if kind is Resource.ALL_TO_ALL and nics > min(node.gpu.link_bytes_per_s, node.gpu.host_link_bytes_per_s) / 20:
        return
    assert of(kind, size, node, nodes, ranks) <= of(kind, size, node, 2 * nodes, ranks) * SLACK


@given(KINDS, SIZES, machines(), st.integers(1, 15))
def test_more_ranks_in_a_node_take_longer(kind: Resource, size: float, node: Node, ranks: int) -> None:
    """One more rank never makes a collective quicker, but where it adds wires (a mesh) or the switch's gain."""
    fabric = inside_fabric(node.gpu, 2)
    if fabric.mesh_peers or (fabric.gain and kind is Resource.ALL_REDUCE):
        return
    assert of(kind, size, node, 1, ranks) <= of(kind, size, node, 1, ranks + 1) * SLACK


@given(KINDS, SIZES, machines(), NODES, st.integers(1, 16))
def test_never_faster_than_the_datasheet(kind: Resource, size: float, node: Node, nodes: int, ranks: int) -> None:
    """What must leave a rank, and a node, takes at least its time on the links' datasheet rates.

    Inside: S (d - 1) / d; twice that for an all-reduce, but once where a switch sums; one buffer for a send; of an
    all-to-all (r - 1) / d. Across: of an all-to-all (d - r) / d for each of the r ranks, else 1 - 1/n.
    """
    if inside_fabric(node.gpu, 2).domain_gpus:
        return
    group = min(ranks, node.gpus)
    d, seconds = nodes * group, of(kind, size, node, nodes, ranks)
    link = max(node.gpu.link_bytes_per_s, node.gpu.host_link_bytes_per_s)
    nics = node.internode_bytes_per_s * group / node.gpus
    summed = inside_fabric(node.gpu, group).gain is not None
    inside = {
        Resource.ALL_REDUCE: (1 if summed else 2) * (d - 1) / d,
        Resource.ALL_TO_ALL: (group - 1) / d,
        Resource.SEND: 1.0 if nodes == 1 and d > 1 else 0.0,
    }.get(kind, (d - 1) / d)
    across = {Resource.ALL_TO_ALL: group * (d - group) / d, Resource.SEND: float(nodes > 1)}.get(kind, 1 - 1 / nodes)
    assert seconds * SLACK >= (inside * size / link if group > 1 else 0.0)
    assert seconds * SLACK >= across * size / nics


@given(KINDS, SIZES, machines())
def test_one_rank_is_free(kind: Resource, size: float, node: Node) -> None:
    """Nobody to talk to."""
    assert of(kind, size, node, 1, 1) == 0.0


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_stragglers_grow_with_the_cluster(nodes: int, more: int) -> None:
    """At least 1, and never less with more nodes."""
    assert 1.0 <= straggler_factor(nodes) <= straggler_factor(nodes + more)
