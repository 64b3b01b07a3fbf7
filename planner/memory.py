"""Does it fit: allocated, reserved and device memory, each a point estimate, and the upper bound that decides."""

from __future__ import annotations

from dataclasses import dataclass

from .hardware import Gpu, Node
from .ledger import Device, Ledger, Phase
from .overheads import overhead
from .units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """One GPU. Three numbers, never mixed: tensors, what the allocator holds for them, what the driver shows."""

    capacity_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    upper_bound_bytes: int
    fullest: Phase

    @property
    def fits(self) -> bool:
        """Whether the upper bound is within the capacity."""
        return self.upper_bound_bytes <= self.capacity_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreMemory:
    """Host RAM or NVMe of one node; a capacity of None is unknown, and then nothing that leans on it fits."""

    capacity_bytes: int | None
    needed_bytes: int
    upper_bound_bytes: int
    leans: bool  # whether the stack puts states there (beyond the processes themselves)
    fullest: Phase

    @property
    def fits(self) -> bool:
        """Known and large enough; unknown only where the stack does not lean on it."""
        if self.capacity_bytes is None:
            return not self.leans
        return self.upper_bound_bytes <= self.capacity_bytes

    @property
    def checked(self) -> bool:
        """Whether a capacity was there to compare with."""
        return self.capacity_bytes is not None


def fixed_device_bytes(world_size: int, *, upper: bool) -> int:
    """Bytes per GPU that are no tensors: context, workspaces, communicators."""
    names = ("context", "collectives") if world_size > 1 else ("context",)
    return round(GIB * sum(overhead(n).upper if upper else overhead(n).point for n in names))


def fragmentation_share(*, upper: bool) -> float:
    """Share of the allocated bytes that the allocator holds on top."""
    figure = overhead("fragmentation")
    return figure.upper if upper else figure.point


def gpu_memory(ledger: Ledger, gpu: Gpu, world_size: int) -> GpuMemory:
    """Peak of one GPU against what the driver reports.

    reserved = allocated (1 + fragmentation); device = reserved + context + communicators; the upper bound takes every
    term at its upper end. Memory model §F1, §F2.
    """
    phases = ledger.by_phase(Device.GPU)
    fullest = max(phases, key=lambda phase: phases[phase])
    allocated, worst = phases[fullest], ledger.peak(Device.GPU, upper=True)
    reserved = round(allocated * (1 + fragmentation_share(upper=False)))
    return GpuMemory(
        capacity_bytes=gpu.memory_bytes,
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        device_bytes=reserved + fixed_device_bytes(world_size, upper=False),
        upper_bound_bytes=round(worst * (1 + fragmentation_share(upper=True)))
        + fixed_device_bytes(world_size, upper=True),
        fullest=fullest,
    )


def host_memory(ledger: Ledger, node: Node, ranks_per_node: int) -> StoreMemory:
    """Host RAM of one node: all its ranks together, against its RAM less the system's share."""
    capacity = node.host_memory_bytes
    usable = None if capacity is None else int(capacity * (1 - overhead("host_reserve").upper))
    return _store(ledger, Device.HOST, usable, ranks_per_node)


def nvme_memory(ledger: Ledger, node: Node, ranks_per_node: int) -> StoreMemory:
    """NVMe of one node."""
    return _store(ledger, Device.NVME, node.nvme_bytes, ranks_per_node)


def _store(ledger: Ledger, device: Device, capacity: int | None, ranks_per_node: int) -> StoreMemory:
    phases = ledger.by_phase(device)
    fullest = max(phases, key=lambda phase: phases[phase])
    return StoreMemory(
        capacity_bytes=capacity,
        needed_bytes=phases[fullest] * ranks_per_node,
        upper_bound_bytes=ledger.peak(device, upper=True) * ranks_per_node,
        leans=any(e.device is device and e.item.section[0] in "WOGA" for e in ledger.entries),
        fullest=fullest,
    )
