"""Accelerators, the nodes they stand in, and what renting a node costs. Values only; `catalog` reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from .calibration import AS_SHIPPED, Calibration
from .terms import PLAIN, Terms

USD = "USD"  # the one currency: no exchange rates are kept


class Tier(Enum):
    """How a node is paid for."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    ON_DEMAND = "on-demand"
    SPOT = "spot"
    RESERVED = "reserved"  # a commitment, billed whether used or not
    CAPACITY_BLOCK = "capacity-block"  # whole days on fixed dates, paid upfront
    OWNED = "owned"  # the user's own machines at the user's own price


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by identity: caches are keyed by it
class Gpu:
    """One accelerator as software sees it. Bytes, FLOP/s and bytes/s; None is unknown, never zero."""

    name: str  # short name: "a100-80"
    full_name: str  # "A100-SXM-80GB"
    aliases: tuple[str, ...]
    vendor: str
    architecture: str
    memory_bytes: int  # what the driver reports, or torch's total where that is smaller and known
    memory_source: str
    memory_bandwidth_bytes_per_s: float
    bf16_flop_per_s: float | None  # dense datasheet peak; None: no bf16 units
    fp16_flop_per_s: float | None
    fp32_flop_per_s: float | None
    matmul_efficiency: float | None  # measured achievable share of the bf16 peak; None: not measured
    link: str  # "NVLink3", "PCIe", ...
    link_bytes_per_s: float  # one direction, per GPU, inside the node
    nvswitch: bool
    host_link_bytes_per_s: float  # one direction, per GPU
    tdp_w: float | None
    sources: tuple[str, ...]
    notes: str = ""
    fp8_flop_per_s: float | None = None
    fp4_flop_per_s: float | None = None
    fp8_efficiency: float | None = None  # measured achievable share of the fp8 peak
    calibration: Calibration = AS_SHIPPED  # what rows measured on the user's own platform say


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by identity: caches are keyed by it
class Node:
    """The machine one offer rents. None is unknown."""

    gpu: Gpu
    gpus: int
    host_memory_bytes: int | None
    vcpus: int | None
    nvme_bytes: int | None
    internode_bytes_per_s: float | None  # whole node, one direction
    fabric: str | None = None  # of configs/fabrics.toml, between nodes: "infiniband", "efa-v2"; None: nobody said


@lru_cache(maxsize=256)
def calibrated(gpu: Gpu, calibration: Calibration) -> Gpu:
    """The accelerator as measured rows say; one value for equal arguments, since caches are keyed by identity."""
    return replace(gpu, calibration=calibration)


@lru_cache(maxsize=256)
def bare(gpu: Gpu) -> Node:
    """A node of one GPU of which nothing else is known: what is computed on it takes the same time on any."""
    return Node(gpu=gpu, gpus=1, host_memory_bytes=None, vcpus=None, nvme_bytes=None, internode_bytes_per_s=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A node at a price: one row of a price catalog, or the user's own machines."""

    name: str  # "aws/p4de.24xlarge"
    cloud: str
    instance: str
    node: Node
    usd_per_hour: float  # whole node
    tier: Tier
    region: str
    date: str  # of the price, as its source states it
    source: str
    notes: str = ""
    currency: str = USD
    terms: Terms = PLAIN
