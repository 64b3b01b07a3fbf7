"""Amounts of work in a training step, by the resource that does them. `time` turns amounts into seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Resource(Enum):
    """What an amount of work is measured in, and what limits it. All amounts are per rank."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    MATMUL = "matmul"  # FLOPs; `shape` gives (m, n, k) of one call
    ATTENTION = "attention"  # FLOPs of the attention kernel
    MEMORY = "memory"  # bytes read and written in GPU memory by memory-bound kernels
    ALL_REDUCE = "all-reduce"  # bytes of the whole buffer
    ALL_GATHER = "all-gather"  # bytes of the gathered result
    REDUCE_SCATTER = "reduce-scatter"  # bytes of the buffer before scattering
    ALL_TO_ALL = "all-to-all"  # bytes of one rank's send buffer; of d ranks' equal parts of it, it keeps its own
    SEND = "send"  # bytes one rank sends to its neighbour: point to point, or one turn of a ring in which all send
    HOST_TO_GPU = "host to GPU"  # bytes
    PAGEABLE_TO_GPU = "pageable host memory to GPU"  # bytes
    GPU_TO_HOST = "GPU to host"  # bytes
    HOST_MEMORY = "host memory"  # bytes moved in the host's DRAM (CPU optimizer)
    NVME_READ = "NVMe read"  # bytes
    NVME_WRITE = "NVMe write"  # bytes
    LAUNCH = "kernel launches"  # number of kernels


class Group(Enum):
    """Which ranks take part in a collective."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    DATA = "data-parallel"
    TENSOR = "tensor-parallel"
    CONTEXT = "context-parallel"
    EXPERT = "expert-parallel"
    PIPELINE = "pipeline-parallel"


class When(Enum):
    """Part of the step the work belongs to."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    FORWARD = "forward"
    BACKWARD = "backward"
    STEP = "step"  # at the optimizer step


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One amount of work.

    ``once`` work happens once per optimizer step (in the last micro-step, or at the step itself), other work in every
    micro-step. ``side`` work runs on its own stream and may hide behind the compute of its part. ``pipelined`` work of
    the optimizer step is done sub-group by sub-group, all resources at once: the slowest hides the others.
    """

    name: str  # what people read: "matrix multiplications", "gather parameters (ZeRO-3)"
    resource: Resource
    amount: float
    when: When
    once: bool = False
    side: bool = False
    pipelined: bool = False
    shape: tuple[int, int, int] | None = None  # MATMUL: (m, n, k)
    bits: int = 0  # MATMUL: of each operand where they are converted to 8 or 4 bits; 0: as the precision
    slowed: float = 1.0  # MATMUL: how many times as long as a single dense one of the shape takes
    group: Group = Group.DATA  # collectives: who takes part
    message_bytes: float = 0.0  # collectives: bytes of one call; 0: one call moves everything
    source: str = ""
