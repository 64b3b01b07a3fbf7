"""Seconds of one collective: bytes over the slowest link it crosses, plus a latency per call.

Symbols: d ranks, n nodes, S bytes of the whole buffer.

    seconds = max(inside, across) + calls * latency
    inside  = f S (d - 1) / d / (link * share)         f = 2 for all-reduce, 1 for all-gather and reduce-scatter
    across  = g S / (NICs of the node * share)         g = f (d - 1) / d; all-reduce of two nodes: 1
    latency = f (d - n) hops inside + f n hops across

A ring visits all ranks of a node before it leaves it, so each node's NICs together carry one ring's traffic. Two nodes
all-reduce over a tree instead, where each node sends its sum once.

Source:
    Thakur, Rabenseifner, Gropp 2005 (ring factors); NVIDIA/nccl-tests doc/PERFORMANCE.md (bus bandwidth). The ring
    across nodes: all-gather on 2 GCP A3-mega nodes ran at 188.5 of the node's 200 GB/s, all-reduce on 4 p6-b200 nodes
    at 381.8 of 400; the tree of two nodes: p4de at 78.3 GB/s bus bandwidth over 50 GB/s of NICs
    (stas00/ml-engineering 744d01e, dstackai/dstack 511c318, aws-samples/awsome-distributed-training 7217859f).
"""

from __future__ import annotations

from functools import lru_cache

from .efficiency import architecture_key, figures, value
from .hardware import Gpu, Node
from .work import Resource

COLLECTIVES = (Resource.ALL_REDUCE, Resource.ALL_GATHER, Resource.REDUCE_SCATTER, Resource.ALL_TO_ALL, Resource.SEND)
BRIDGED_RANKS = 2  # an NVLink bridge joins a pair of PCIe boards
MESH_PEERS = 7  # xGMI gives each pair of 8 its own wire: 2 MI300X reached 47.7 of 64, 8 of them 312.9 of 448 GB/s
SWITCH_RANKS = 8  # where the switch's gain was measured in full (H200: 1.00x with 4 ranks); below it none is assumed


def _passes(kind: Resource) -> int:
    """f: an all-reduce is a reduce-scatter and an all-gather."""
    return 2 if kind is Resource.ALL_REDUCE else 1


def _is_switched_multicast(gpu: Gpu) -> bool:
    """NVSwitch sums all-reduces itself (NVLink SHARP) from the third generation on, Hopper's."""
    return gpu.nvswitch and architecture_key(gpu.architecture) in figures()["switch_gain"]


@lru_cache(maxsize=4096)
def bus_bytes_per_s(gpu: Gpu, ranks: int, kind: Resource) -> float:
    """Bus bandwidth of a large collective among the ranks of one node.

    Args:
        gpu: gives the link and its datasheet rate, one direction.
        ranks: taking part, in one node.
        kind: the collective.

    Returns:
        Bytes/s; divide f S (d - 1) / d by it.
    """
    link = gpu.link.lower()
    if link.startswith("nvlink") and not gpu.nvswitch and "sxm" not in gpu.full_name.lower() and ranks > BRIDGED_RANKS:
        return gpu.host_link_bytes_per_s * value("collective", "pcie")  # pairs are bridged, the ring is not
    if link.startswith("nvlink"):
        gain = 1.0
        if kind is Resource.ALL_REDUCE and _is_switched_multicast(gpu) and ranks >= SWITCH_RANKS:
            gain = value("switch_gain", architecture_key(gpu.architecture))
        return gpu.link_bytes_per_s * value("collective", "nvlink") * gain
    if link.startswith(("pcie", "none")):
        return gpu.host_link_bytes_per_s * value("collective", "pcie")
    mesh = min(1.0, (ranks - 1) / MESH_PEERS) if link.startswith("xgmi") else 1.0
    return gpu.link_bytes_per_s * mesh * value("collective", "other")


def _across_s(kind: Resource, amount_bytes: float, nodes: int, ranks: int, ranks_per_node: int, node: Node) -> float:
    """Time on the NICs of one node; ranks left idle leave their NICs idle."""
    if node.internode_bytes_per_s is None:
        raise ValueError(
            f"network between nodes of {node.gpu.name}: unknown (internode_bytes_per_s is None); plan one node"
        )
    rate = node.internode_bytes_per_s * ranks_per_node / node.gpus * value("internode", "share")
    tree = kind is Resource.ALL_REDUCE and nodes == 2
    crossing = 1.0 if tree else _passes(kind) * (ranks - 1) / ranks
    return crossing * amount_bytes / rate


def _send_s(amount_bytes: float, nodes: int, ranks_per_node: int, node: Node) -> float:
    if nodes == 1:
        return amount_bytes / bus_bytes_per_s(node.gpu, ranks_per_node, Resource.SEND)
    return amount_bytes / ((node.internode_bytes_per_s or 0.0) / node.gpus * value("internode", "share"))


def latency_s(kind: Resource, nodes: int, ranks_per_node: int) -> float:
    """Time of a collective of no bytes: one pass of the ring, two for an all-reduce.

    >>> latency_s(Resource.ALL_GATHER, 1, 1)
    0.0
    """
    ranks = nodes * ranks_per_node
    across = nodes if nodes > 1 else 0
    inside = ranks - 1 - across if nodes == 1 else ranks - nodes
    return _passes(kind) * (inside * value("latency", "inside") + across * value("latency", "across"))


def collective_s(
    kind: Resource,
    amount_bytes: float,
    *,
    message_bytes: float = 0.0,
    nodes: int,
    ranks_per_node: int,
    node: Node,
) -> float:
    """Seconds of all calls of one collective.

    Args:
        kind: ALL_REDUCE, ALL_GATHER or REDUCE_SCATTER.
        amount_bytes: S, bytes of the whole buffer (see `Resource`), summed over the calls.
        message_bytes: bytes of one call; 0: one call moves everything.
        nodes: n.
        ranks_per_node: ranks in each node.
        node: links and NICs.

    Raises:
        ValueError: several nodes and the network between them is unknown.
    """
    ranks = nodes * ranks_per_node
    if ranks == 1 or amount_bytes <= 0:
        return 0.0
    calls = max(1.0, amount_bytes / message_bytes) if message_bytes > 0 else 1.0
    if kind is Resource.SEND:
        return _send_s(amount_bytes, nodes, ranks_per_node, node) + calls * value("latency", "across" if nodes > 1 else "inside")
    wire = 0.0
    if ranks_per_node > 1:
        bus = bus_bytes_per_s(node.gpu, ranks_per_node, kind)
        wire = _passes(kind) * (ranks - 1) / ranks * amount_bytes / bus
    if nodes > 1:
        wire = max(wire, _across_s(kind, amount_bytes, nodes, ranks, ranks_per_node, node))
    return wire + calls * latency_s(kind, nodes, ranks_per_node)
