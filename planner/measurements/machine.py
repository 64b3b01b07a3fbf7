"""A row's machine: its GPU, what the allocator keeps, who communicates, over which network."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

from ..catalog import find_gpu
from ..efficiency import architecture_key
from ..errors import InputError
from ..frameworks import framework_of
from ..hardware import Gpu, Node
from ..machines import on_a_desktop
from ..memory import Allocator
from ..parallel import Split
from ..time.fabrics import named_fabric
from ..units import GBIT_BYTES, GIB
from .subject import is_layer_split
from .table import Measurement, Unsupported

GPUS_PER_NODE = 8
TRAY = 4  # GPUs of one node of a rack (GB200, GB300 NVL72)
USUAL_FABRIC = "infiniband"  # of the clusters that have one NIC a GPU, where a row says nothing
NIC_GBPS = {
    "ampere": 200.0,
    "hopper": 400.0,
    "blackwell": 400.0,
}  # per GPU, as most machines of configs/offers have them

DRIVER_SHARE = 0.985  # A100-80: 79.14 of 80 GiB, H100-80: 79.11, RTX 4090: 23.6 of 24; configs/gpus.toml


def gpu_of(row: Measurement) -> Gpu | None:
    """The catalog's accelerator, if it has the row's."""
    known = _gpu(row.text("gpu"), row.number("gpu_mem_gb")) if row.text("gpu") else None
    limit = POWER.search(row.text("gpu"))
    limited = _limited(known, float(limit[1])) if known and limit else known
    return on_a_desktop(limited, row.whole("n_gpus", 1)) if limited else None


POWER = re.compile(r"\b([0-9]{2,4}) ?W\b")


@lru_cache(maxsize=64)
def _limited(gpu: Gpu, watts: float) -> Gpu:
    """One value for equal cards: caches are keyed by identity."""
    return replace(gpu, tdp_w=watts)


def gpu_named(name: str, memory_gb: float = 0.0) -> Gpu | None:
    """The catalog's accelerator of a name as drivers and papers write it; None: it has none.

    >>> gpu_named("NVIDIA A100-SXM4-80GB").name, gpu_named("NVIDIA RTX 6000 Ada Generation").name, gpu_named("abacus")
    ('a100-80', 'rtx6000-ada', None)
    """
    return _gpu(name, memory_gb)


@lru_cache(maxsize=1024)
def _gpu(name: str, memory_gb: float) -> Gpu | None:
    """By its name, or by the name less form factor, remarks and brand, with its size where the catalog needs it."""
    plain = re.sub(r"\([^()]{0,40}\)|sxm\d?|pcie|nvidia|geforce|rtx|\b\d{1,4} ?gb|[-_]", " ", name.lower()).strip()
    size = f"{memory_gb:.0f}" if memory_gb else ""
    for candidate in (name, f"{plain}-{size}", plain, f"rtx {plain}"):
        try:
            return find_gpu(" ".join(candidate.split()))
        except InputError:
            continue
    return None


def capacity_of(row: Measurement) -> int:
    """Bytes of the row's GPU: by the catalog, else what the driver usually reports of the stated size.

    Raises:
        Unsupported: neither name nor size is known.
    """
    known = gpu_of(row)
    if known is not None:
        return known.memory_bytes
    if row.number("gpu_mem_gb"):
        return int(row.number("gpu_mem_gb") * GIB * DRIVER_SHARE)
    raise Unsupported(f"GPU {row.text('gpu') or 'not stated'}")


VARYING_LENGTHS = ("truncated", "varying", "variable length", "unpacked", "padded")


def allocator_of(row: Measurement) -> Allocator:
    """How much of freed memory stayed cached: the notes say so of expandable segments and of varying lengths."""
    notes = row.text("notes").lower()
    if "expandable" in notes or framework_of(row.text("framework")).sharding == "engine":
        return Allocator.EXPANDABLE
    return Allocator.VARYING if any(word in notes for word in VARYING_LENGTHS) else Allocator.NATIVE


def communicators_of(row: Measurement, split: Split) -> int:
    """Groups of ranks that communicate: data, tensor, pipeline, context."""
    groups = (row.replicas, split.tensor, 1 if is_layer_split(row) else split.pipeline, split.context)
    return sum(size > 1 for size in groups)


# Short runs of digits: a long one would be tried from each of its places.
LINKS = re.compile(r"\b([0-9]{1,4}) ?(?:x|OmniPath)? ?([0-9]{1,5}) ?Gb")
RATE = re.compile(r"\b([0-9]{1,5}) ?Gb")


def network_gbps(row: Measurement) -> float:
    """Gbit/s of one node where the row states them: "1600 Gbps RoCE", "8x200Gb/s HDR IB"; 0: not stated."""
    text = row.text("interconnect")
    links = LINKS.search(text) if "x" in text or "links" in text else None
    if links:
        return float(links[1]) * float(links[2])
    plain = RATE.search(text)
    return float(plain[1]) if plain else 0.0


def gpus_per_node(row: Measurement) -> int:
    """GPUs that NVLink or PCIe joins: 8, or 4 of a rack."""
    gpu = gpu_of(row)
    in_rack = gpu is not None and "grace" in gpu.architecture.lower() and gpu.link.startswith("NVLink5")
    return TRAY if in_rack else GPUS_PER_NODE


def node_of(row: Measurement, gpu: Gpu) -> Node:
    """The row's machine: the network as stated, else one NIC a GPU as its generation has them."""
    gpus = gpus_per_node(row)
    usual = NIC_GBPS.get(architecture_key(gpu.architecture), NIC_GBPS["hopper"]) * gpus
    stated = network_gbps(row)
    fabric = named_fabric(row.text("interconnect")) or (None if stated else USUAL_FABRIC)
    return _node(gpu, gpus, stated or usual, fabric)


@lru_cache(maxsize=256)
def _node(gpu: Gpu, gpus: int, gbps: float, fabric: str | None) -> Node:
    """One value for equal machines: caches are keyed by identity."""
    return Node(
        gpu=gpu,
        gpus=gpus,
        host_memory_bytes=None,
        vcpus=None,
        nvme_bytes=None,
        internode_bytes_per_s=gbps * GBIT_BYTES,
        fabric=fabric,
    )
