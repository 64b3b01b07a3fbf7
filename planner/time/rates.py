"""What one rank achieves: datasheet peaks times measured shares, or what the power limit lets through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from ..efficiency import architecture_key, architecture_keys, optional, value
from ..hardware import Gpu, Node
from ..work import Resource
from ..workload import Precision
from . import host_rates


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: the shape cache is keyed by it
class Rates:
    """What one rank achieves: peaks times measured shares."""

    matmul_flop_per_s: float  # of a large multiplication
    low_flop_per_s: tuple[
        tuple[int, float], ...
    ]  # the same on operands of 8 and of 4 bits, where the GPU has such units
    element_bytes: int
    multiprocessors: int
    half_k: float
    attention_flop_per_s: float  # of a long sequence
    half_keys: float
    memory_bytes_per_s: float
    launch_s: float
    layers: int  # L: side work of one layer hides behind the compute of another
    interference_share: float
    host_link_bytes_per_s: float
    pageable_bytes_per_s: float
    host_memory_bytes_per_s: float  # this rank's share of the node
    nvme_read_bytes_per_s: float
    nvme_write_bytes_per_s: float
    unit_s: Mapping[Resource, float]  # seconds of one byte or kernel, of resources whose rate depends on nothing else


def _peak_flop_per_s(gpu: Gpu, precision: Precision) -> float | None:
    """Datasheet peak of dense multiplications."""
    return {
        Precision.BF16: gpu.bf16_flop_per_s,
        Precision.FP16: gpu.fp16_flop_per_s,
        Precision.FP32: gpu.fp32_flop_per_s,
    }[precision]


MODELLED_VENDORS = ("nvidia", "amd")  # CUDA and ROCm run the same DeepSpeed code paths; others have their own


def refusal(gpu: Gpu, precision: Precision) -> str | None:
    """Why no time can be given, or None."""
    if gpu.vendor not in MODELLED_VENDORS:
        return f"{gpu.name}: kernels and overheads of {gpu.vendor} are not modelled; choose an NVIDIA or AMD GPU"
    if _peak_flop_per_s(gpu, precision):
        return None
    return f"{gpu.name}: no {precision.value} units, or their rate is unknown; choose another GPU or precision"


@lru_cache(maxsize=1024)
def rates(node: Node, ranks_per_node: int, precision: Precision, layers: int = 1) -> Rates:
    """The rates of one rank on a node.

    Raises:
        ValueError: the GPU has no units for this precision; `refusal` says so beforehand.
    """
    gpu = node.gpu
    peak = _peak_flop_per_s(gpu, precision)
    if not peak:
        raise ValueError(refusal(gpu, precision))
    key, own = architecture_key(gpu.architecture), gpu.calibration
    measured = gpu.matmul_efficiency or optional("matmul_ceiling", *architecture_keys(gpu.architecture))
    ceiling = measured or value("matmul_ceiling", "other")
    found = Rates(
        matmul_flop_per_s=own.matmul * _sustained_flop_per_s(gpu, peak, ceiling, "matmul_energy"),
        low_flop_per_s=_low_rates(gpu),
        element_bytes=precision.bytes,
        multiprocessors=int(value("multiprocessors", key)),
        half_k=value("matmul_shape", "half_k"),
        attention_flop_per_s=own.attention
        * peak
        * (optional("attention", gpu.name, key) or value("attention", "other")),
        half_keys=value("attention_shape", "half_keys"),
        memory_bytes_per_s=own.memory * gpu.memory_bandwidth_bytes_per_s * value("memory", "bandwidth"),
        launch_s=value("launch", "seconds") / own.launches,
        layers=layers,
        interference_share=value("overlap", "interference"),
        host_link_bytes_per_s=host_rates.host_link_bytes_per_s(node, ranks_per_node),
        pageable_bytes_per_s=host_rates.pageable_bytes_per_s(node, ranks_per_node),
        host_memory_bytes_per_s=host_rates.cpu_optimizer_bytes_per_s(node, ranks_per_node),
        nvme_read_bytes_per_s=host_rates.nvme_bytes_per_s(node, ranks_per_node, "read"),
        nvme_write_bytes_per_s=host_rates.nvme_bytes_per_s(node, ranks_per_node, "write"),
        unit_s={},
    )
    return replace(found, unit_s=_unit_s(found))


def _unit_s(rate: Rates) -> dict[Resource, float]:
    """Seconds of one byte, or of one kernel's launch."""
    return {
        Resource.MEMORY: 1 / rate.memory_bytes_per_s,
        Resource.LAUNCH: rate.launch_s,
        Resource.HOST_TO_GPU: 1 / rate.host_link_bytes_per_s,
        Resource.GPU_TO_HOST: 1 / rate.host_link_bytes_per_s,
        Resource.PAGEABLE_TO_GPU: 1 / rate.pageable_bytes_per_s,
        Resource.HOST_MEMORY: 1 / rate.host_memory_bytes_per_s,
        Resource.NVME_READ: 1 / rate.nvme_read_bytes_per_s,
        Resource.NVME_WRITE: 1 / rate.nvme_write_bytes_per_s,
    }


def _sustained_flop_per_s(gpu: Gpu, peak: float, ceiling: float, energy: str) -> float:
    """What large multiplications keep up: their ceiling's share, or what the power limit lets through."""
    share = peak * ceiling * value("matmul_sustained", "other")
    per_joule = optional(energy, *architecture_keys(gpu.architecture))
    return min(share, per_joule * gpu.tdp_w) if per_joule and gpu.tdp_w else share


def _low_rates(gpu: Gpu) -> tuple[tuple[int, float], ...]:
    """The same on operands of 8 and 4 bits, where the GPU has such units."""
    key = architecture_key(gpu.architecture)
    eight = gpu.fp8_efficiency or value("fp8_ceiling", key)
    rows = (
        (8, gpu.fp8_flop_per_s, eight, "fp8_energy"),
        (4, gpu.fp4_flop_per_s, value("fp4_ceiling", key), "fp4_energy"),
    )
    return tuple(
        (bits, gpu.calibration.matmul * _sustained_flop_per_s(gpu, peak, ceiling, energy))
        for bits, peak, ceiling, energy in rows
        if peak
    )
