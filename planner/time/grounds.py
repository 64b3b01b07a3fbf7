"""Which figure a term of the step rests on: the log of what was measured and what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..calibration import Calibration
from ..efficiency import Figure, architecture_key, architecture_keys, figure, first, has
from ..hardware import Gpu, Node
from ..work import Resource, Work
from .fabrics import fabrics
from .network import COLLECTIVES, rests_on

KINDS = ("measured", "datasheet", "derived", "fitted", "assumed")  # the surest first


@dataclass(frozen=True, slots=True)
class Ground:
    """One figure: its name, how it is known, where it was read."""

    figure: str  # "efficiency.toml matmul_energy.hopper"
    kind: str
    source: str


def ground_of(work: Work, node: Node, nodes: int, ranks_per_node: int) -> Ground:
    """The figure that turns this amount of work into seconds; of several the most doubtful."""
    if work.resource in COLLECTIVES:
        return _network_ground(work.resource, node, nodes, ranks_per_node)
    return _ground(work.resource, node.gpu, work.bits)


def _as_measured(ground: Ground, factor: float) -> Ground:
    """A figure that rows of the platform have moved."""
    if factor == 1.0:
        return ground
    return Ground(f"{ground.figure} x {factor:.3f} (profile)", "fitted", f"--profile; shipped figure: {ground.source}")


def _factor(resource: Resource, own: Calibration) -> float:
    """What a profile multiplies the rate of a resource by."""
    return {
        Resource.MATMUL: own.matmul,
        Resource.ATTENTION: own.attention,
        Resource.MEMORY: own.memory,
        Resource.LAUNCH: own.launches,
        Resource.HOST_MEMORY: own.host_memory,
        Resource.NVME_READ: own.nvme,
        Resource.NVME_WRITE: own.nvme,
    }.get(resource, own.host_link)


@lru_cache(maxsize=4096)
def _network_ground(kind: Resource, node: Node, nodes: int, ranks_per_node: int) -> Ground:
    shares = [f for f in rests_on(kind, node, nodes, ranks_per_node) if f.name.endswith("share")]
    if not shares:
        return Ground("no network", "derived", "one rank talks to nobody")
    is_between = shares[-1].name.split(".")[0] in fabrics("between")
    factor = node.gpu.calibration.between if is_between else node.gpu.calibration.inside
    return _as_measured(Ground(f"fabrics.toml {shares[-1].name}", shares[-1].kind, shares[-1].source), factor)


TABLES = {
    Resource.MEMORY: ("memory", "bandwidth"),
    Resource.LAUNCH: ("launch", "seconds"),
    Resource.HOST_TO_GPU: ("host_link", "share"),
    Resource.GPU_TO_HOST: ("host_link", "share"),
    Resource.PAGEABLE_TO_GPU: ("host_link", "pageable_bytes_per_s"),
    Resource.HOST_MEMORY: ("host_memory", "share"),
    Resource.NVME_READ: ("nvme", "gen5_read_per_gpu"),
    Resource.NVME_WRITE: ("nvme", "gen5_write_per_gpu"),
}


@lru_cache(maxsize=1024)
def _ground(resource: Resource, gpu: Gpu, bits: int) -> Ground:
    return _as_measured(_shipped_ground(resource, gpu, bits), _factor(resource, gpu.calibration))


def _shipped_ground(resource: Resource, gpu: Gpu, bits: int) -> Ground:
    if resource is Resource.MATMUL:
        return _matmul_ground(gpu, bits)
    if resource is Resource.ATTENTION:
        return _named("attention", first("attention", gpu.name, architecture_key(gpu.architecture)) or "other")
    return _named(*TABLES[resource])


def _matmul_ground(gpu: Gpu, bits: int) -> Ground:
    """The power limit's figure where there is one, else the ceiling's."""
    table = {0: "matmul_energy", 8: "fp8_energy", 4: "fp4_energy"}[bits]
    found = first(table, *architecture_keys(gpu.architecture))
    return _named(table, found) if found else _named("matmul_sustained", "other")


def _named(table: str, name: str) -> Ground:
    row: Figure = figure(table, name)
    shown = name if has(table, name) else "other"
    return Ground(f"efficiency.toml {table}.{shown}", row.kind, row.source)
