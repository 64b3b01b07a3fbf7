"""Seconds of one collective: latency of its hops, bytes over the slowest link they cross, and the pipeline's ramp.

Symbols: S bytes of the buffer (see `Resource`), d ranks, n domains (nodes, or racks where NVLink joins nodes) with
r ranks in each, a hop's latency inside (a) and across (b), c of a call, R the ramp of the outermost fabric crossed,
B bus bandwidth inside = link x share (x the switch's gain), N bandwidth across = the NICs that a domain's ranks own x
share. f = 2 for all-reduce, 1 for all-gather and reduce-scatter.

    seconds = A + w S (1 + R / (S + R))
    ring        A = c + f ((d - n) a + (n - 1) b)      w = f (d - 1) / d / min(B, N)        no b, N where n = 1
    tree        A = c + 2 ((r - 1) a + log2(n) b)      w = max(2 (d - 1) / d / B, x / N)    all-reduce, n > 1
    all-to-all  A = c + (r - 1) a + (n - 1) b          w = max((r - 1) / B, r (d - r) / N) / d              R = 0
    send        A = c + max(a, b)                      w = max(1 / (link x send share), r / N)              R = 0

x = 1 for two domains, where each sends its sum once; 2 beyond, where the inner nodes of a double tree send a sum up and
totals down. An all-reduce takes the quicker of ring and tree, as the library does. Only a tree, or a group in one
domain, uses the switch's gain.

Why a ramp and not latency alone: chunks pipeline, but a buffer smaller than the chunks in flight is stored and
forwarded, its wire time counting twice; a larger one pays the filling once. Latency alone, where it fits 8 H100 at
128 MiB (98 us), makes 1 MiB 3.7 times too slow. The form is concave in S, so that one big message is never slower than
many small ones. R is fitted on all-reduces and taken to hold for gathers and scatters; one hop has no pipeline to fill.

A group with fewer ranks in a node than the node has GPUs shares the NICs with the node's other groups, which are taken
to do the same at the same time.

Source:
    Thakur, Rabenseifner, Gropp 2005 (ring and pairwise factors); Sanders, Speck, Traeff 2009 (two trees); hops of ring
    and tree, the quicker of both: NVIDIA/nccl 01afd20a src/graph/tuning.cc; bus bandwidth: NVIDIA/nccl-tests
    doc/PERFORMANCE.md; all-to-all does not pool the NICs of a node: NVIDIA/nccl-tests#267. Figures:
    configs/fabrics.toml. Checked against every row of tests/data/collectives.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, inf, log2
from typing import NamedTuple

from ..hardware import Gpu, Node
from ..work import Resource
from .fabrics import Fabric, FabricFigure, between_fabric, every, inside_fabric

COLLECTIVES = (
    Resource.ALL_REDUCE,
    Resource.ALL_GATHER,
    Resource.REDUCE_SCATTER,
    Resource.ALL_TO_ALL,
    Resource.SEND,
)
PIPELINED = frozenset((Resource.ALL_REDUCE, Resource.ALL_GATHER, Resource.REDUCE_SCATTER))  # of several hops


@dataclass(frozen=True, slots=True)
class _Group:
    """Who takes part, and what they cross. Bandwidths are bytes/s of each rank."""

    ranks: int  # d
    domains: int  # n
    inside_ranks: int  # r
    inside: Fabric
    between: Fabric | None  # None: one domain
    ring: float  # B without the switch's gain
    summed: float  # B of an all-reduce
    nic: float  # N / r: of one rank's NICs; 0 with one domain


class _Way(NamedTuple):
    """One algorithm's A, w and R."""

    latency_s: float
    s_per_byte: float
    ramp_bytes: float


def _link_bytes_per_s(gpu: Gpu, fabric: Fabric, peers: int) -> float:
    """Datasheet rate out of one GPU to so many peers, times what rows of the platform say."""
    own = gpu.calibration.inside
    if fabric.name.startswith("pcie"):
        return own * gpu.host_link_bytes_per_s
    wires = min(1.0, peers / fabric.mesh_peers) if fabric.mesh_peers else 1.0
    return own * gpu.link_bytes_per_s * wires


def _domains(node: Node, nodes: int, ranks_per_node: int) -> tuple[int, int]:
    """n and r: nodes, or the racks they fill where one switch joins nodes; the fullest one counts."""
    fabric = inside_fabric(node.gpu, nodes * ranks_per_node)
    nodes_each = max(1, fabric.domain_gpus // node.gpus)
    domains = ceil(nodes / nodes_each)
    return domains, ceil(nodes / domains) * ranks_per_node


def domains(node: Node, nodes: int, ranks_per_node: int) -> int:
    """How many NVLink domains a group spans: its nodes, or the racks that these fill."""
    return _domains(node, nodes, ranks_per_node)[0]


def _nic_bytes_per_s(node: Node, fabric: Fabric, ranks: int) -> float:
    """Of one rank: the node's NICs shared by its GPUs."""
    if node.internode_bytes_per_s is None:
        raise ValueError(
            f"network between nodes of {node.gpu.name}: unknown (internode_bytes_per_s is None); plan one node"
        )
    return node.gpu.calibration.between * node.internode_bytes_per_s / node.gpus * fabric.share.at(ranks)


@lru_cache(maxsize=4096)
def _group(node: Node, nodes: int, ranks_per_node: int) -> _Group:
    domains, inside_ranks = _domains(node, nodes, ranks_per_node)
    inside = inside_fabric(node.gpu, inside_ranks)
    ring = _link_bytes_per_s(node.gpu, inside, inside_ranks - 1) * inside.share.at(inside_ranks)
    between = between_fabric(node) if domains > 1 else None
    return _Group(
        ranks=nodes * ranks_per_node,
        domains=domains,
        inside_ranks=inside_ranks,
        inside=inside,
        between=between,
        ring=ring,
        summed=ring * (inside.gain.at(inside_ranks) if inside.gain else 1.0),
        nic=_nic_bytes_per_s(node, between, nodes * ranks_per_node) if between else 0.0,
    )


def _wire(group: _Group, inside: float, across: float, bus: float) -> float:
    """Seconds per byte of the slower part; shares of S that a rank sends inside, and that its NICs send."""
    wires = [inside / bus] if group.inside_ranks > 1 else []
    return max([*wires, across / group.nic] if group.between else wires)


def _ring(group: _Group, passes: int, bus: float) -> _Way:
    d, n = group.ranks, group.domains
    hops = (d - n) * group.inside.hop_s.value + (n - 1) * (group.between.hop_s.value if group.between else 0.0)
    share = passes * (d - 1) / d
    outermost = group.between or group.inside
    return _Way(
        every("call_s").value + passes * hops,
        _wire(group, share, share / group.inside_ranks, bus),  # one ring leaves the domain through all its NICs
        outermost.ramp_bytes.value,
    )


def _tree(group: _Group, between: Fabric) -> _Way:
    d, n = group.ranks, group.domains
    depth = (n - 1).bit_length()
    hops = (group.inside_ranks - 1) * group.inside.hop_s.value + depth * between.hop_s.value
    crossing = 1.0 if n == 2 else 2.0
    return _Way(
        every("call_s").value + 2 * hops,
        _wire(group, 2 * (d - 1) / d, crossing / group.inside_ranks, group.summed),
        between.ramp_bytes.value,
    )


def _all_to_all(group: _Group) -> _Way:
    d, r = group.ranks, group.inside_ranks
    hops = (r - 1) * group.inside.hop_s.value
    hops += (group.domains - 1) * group.between.hop_s.value if group.between else 0.0
    return _Way(every("call_s").value + hops, _wire(group, (r - 1) / d, (d - r) / d, group.ring), 0.0)


def _send(group: _Group, gpu: Gpu) -> _Way:
    """The slowest pair of a ring or pipeline sets its pace: inside, or on both sides of the border."""
    hops, s_per_byte = [], []
    if group.inside_ranks > 1:
        share = group.inside.send_share or group.inside.share
        hops.append(group.inside.hop_s.value)
        s_per_byte.append(1.0 / (_link_bytes_per_s(gpu, group.inside, 1) * share.at(group.inside_ranks)))
    if group.between:
        hops.append(group.between.hop_s.value)
        s_per_byte.append(1.0 / group.nic)
    return _Way(every("call_s").value + max(hops), max(s_per_byte), 0.0)


@lru_cache(maxsize=8192)
def _ways(kind: Resource, node: Node, nodes: int, ranks_per_node: int) -> tuple[_Way, ...]:
    """The algorithms that a collective may take."""
    group = _group(node, nodes, ranks_per_node)
    if kind is Resource.ALL_TO_ALL:
        return (_all_to_all(group),)
    if kind is Resource.SEND:
        return (_send(group, node.gpu),)
    if kind is not Resource.ALL_REDUCE:
        return (_ring(group, 1, group.ring),)
    if group.between is None:
        return (_ring(group, 2, group.summed),)
    return (_ring(group, 2, group.ring), _tree(group, group.between))


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
        kind: one of COLLECTIVES.
        amount_bytes: S (see `Resource`), summed over the calls.
        message_bytes: bytes of one call; 0: one call moves everything.
        nodes: nodes that the group spans.
        ranks_per_node: ranks of this group in each node; the node's other GPUs do the same in groups of their own.
        node: links and NICs.

    Raises:
        ValueError: the group leaves its domain and the network between nodes is unknown.
        InputError: the node names a fabric that is not in configs/fabrics.toml.

    >>> from trainplan.planner.catalog import find_offers
    >>> p5 = find_offers("aws/p5.48xlarge")[0].node
    >>> round(1e3 * collective_s(Resource.ALL_GATHER, 2**30, nodes=1, ranks_per_node=8, node=p5), 2)  # milliseconds
    2.63
    """
    if nodes * ranks_per_node <= 1 or amount_bytes <= 0:
        return 0.0
    calls = max(1.0, amount_bytes / message_bytes) if message_bytes > 0 else 1.0
    call_bytes = amount_bytes / calls
    quickest = inf
    for latency, per_byte, ramp in _ways(kind, node, nodes, ranks_per_node):
        seconds = latency + per_byte * call_bytes * (1.0 + ramp / (call_bytes + ramp))
        quickest = min(quickest, seconds)
    return calls * quickest


def bus_bytes_per_s(kind: Resource, amount_bytes: float, *, nodes: int, ranks_per_node: int, node: Node) -> float:
    """Bus bandwidth as nccl-tests prints it: f S (d - 1) / d / seconds; S / seconds of a send.

    Args:
        kind: one of COLLECTIVES.
        amount_bytes: S of one call.
        nodes: nodes that the group spans.
        ranks_per_node: ranks in each.
        node: links and NICs.

    Returns:
        Bytes/s.

    Raises:
        ValueError: as `collective_s`; one rank has no bandwidth.
    """
    ranks = nodes * ranks_per_node
    if ranks < 2 or amount_bytes <= 0:
        raise ValueError(f"bus bandwidth: needs two ranks and some bytes, got {ranks} and {amount_bytes}")
    passes = 2 if kind is Resource.ALL_REDUCE else 1
    factor = 1.0 if kind is Resource.SEND else passes * (ranks - 1) / ranks
    seconds = collective_s(kind, amount_bytes, nodes=nodes, ranks_per_node=ranks_per_node, node=node)
    return factor * amount_bytes / seconds


def rests_on(kind: Resource, node: Node, nodes: int, ranks_per_node: int) -> tuple[FabricFigure, ...]:
    """The figures that a collective's seconds rest on, the most doubtful last; none where one rank is alone.

    >>> from trainplan.planner.catalog import find_offers
    >>> p5 = find_offers("aws/p5.48xlarge")[0].node
    >>> [(f.name, f.kind) for f in rests_on(Resource.SEND, p5, 2, 1)]
    [('efa-v2.hop_s', 'fitted'), ('efa-v2.share', 'assumed'), ('call_s', 'assumed')]
    """
    if nodes * ranks_per_node <= 1:
        return ()
    group = _group(node, nodes, ranks_per_node)
    figures = [*_inside_figures(kind, group), *_between_figures(kind, group), every("call_s")]
    return tuple(sorted(figures, key=lambda figure: DOUBT.index(figure.kind)))


DOUBT = ("measured", "derived", "fitted", "assumed")


def _inside_figures(kind: Resource, group: _Group) -> list[FabricFigure]:
    inside = group.inside
    if group.inside_ranks == 1:
        return []
    if kind is Resource.SEND:
        return [inside.send_share or inside.share, inside.hop_s]
    ramp = [inside.ramp_bytes] if kind in PIPELINED and not group.between else []
    gain = [inside.gain] if kind is Resource.ALL_REDUCE and inside.gain else []
    return [inside.share, inside.hop_s, *ramp, *gain]


def _between_figures(kind: Resource, group: _Group) -> list[FabricFigure]:
    if group.between is None:
        return []
    ramp = [group.between.ramp_bytes] if kind in PIPELINED else []
    return [group.between.share, group.between.hop_s, *ramp]


def straggler_factor(ranks: int) -> float:
    """How much longer a step of many ranks takes than its parts: noise and congestion that grow with the cluster.

    Formula: (1 - loss) ** -log2(ranks / 8) beyond 8 ranks, loss a share per doubling. Not applied by `collective_s`:
    the time model decides what waits for the slowest.

    >>> straggler_factor(8), straggler_factor(16) > 1
    (1.0, True)
    """
    doublings = log2(max(1.0, ranks / every("together").value))
    return float((1.0 - every("straggler").value) ** -doublings)
