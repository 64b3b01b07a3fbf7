"""Does it fit: allocated, reserved and device memory, each a point and a range, and the upper bound that decides."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from .calibration import AS_SHIPPED, Calibration, Range
from .hardware import Gpu, Node
from .ledger import TRAINING, Device, Ledger, Phase
from .overheads import Overhead, overhead
from .units import GIB


class Allocator(Enum):
    """How PyTorch's caching allocator keeps what tensors gave back."""

    EXPANDABLE = "expandable"  # expandable_segments, as our launch command sets it
    NATIVE = "native"  # segments of fixed size, the same shapes in every step
    VARYING = (
        "varying"  # segments of fixed size, sequences of changing length: what is not held always is kept in parts
    )


@dataclass(frozen=True, slots=True)
class Band:
    """A figure with the range it is expected in."""

    low: int
    point: int
    upper: int

    def holds(self, value: float) -> bool:
        """Whether a measured value lies inside.

        >>> Band(1, 2, 3).holds(2.5)
        True
        """
        return self.low <= value <= self.upper


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """One GPU. Three numbers, never mixed: tensors, what the allocator holds for them, what the driver shows."""

    capacity_bytes: int
    allocated: Band
    reserved: Band
    device: Band
    upper_bound_bytes: int  # what cannot be given back before an out-of-memory; decides what fits
    fullest: Phase

    @property
    def allocated_bytes(self) -> int:
        """Expected peak of torch.cuda.max_memory_allocated."""
        return self.allocated.point

    @property
    def reserved_bytes(self) -> int:
        """Expected peak of torch.cuda.max_memory_reserved."""
        return self.reserved.point

    @property
    def device_bytes(self) -> int:
        """Expected peak of what nvidia-smi shows."""
        return self.device.point

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


def _figure(name: str, calibration: Calibration) -> Overhead | Range:
    """As rows of the platform say, else as shipped."""
    return calibration.overheads.get(name) or overhead(name)


def fixed_device_bytes(world_size: int, *, upper: bool, calibration: Calibration = AS_SHIPPED) -> int:
    """Bytes per GPU that are no tensors: context, workspaces, the communicator of all ranks."""
    fixed = fixed_band(1 if world_size > 1 else 0, calibration)
    return fixed.upper if upper else fixed.point


@lru_cache(maxsize=64)
def fixed_band(communicators: int, calibration: Calibration = AS_SHIPPED) -> Band:
    """Context and workspaces, and a set of buffers for each group of ranks that communicates. Memory model §F2."""
    context, each = _figure("context", calibration), _figure("collectives", calibration)
    low, point, upper = (
        round(GIB * (one + communicators * more))
        for one, more in ((context.low, each.low), (context.point, each.point), (context.upper, each.upper))
    )
    return Band(low, point, upper)


def needed_share() -> float:
    """Upper end of the share of allocated bytes that the allocator cannot do without: decides what fits."""
    return overhead("needed").upper


def gpu_upper_bound_bytes(ledger: Ledger, communicators: int, calibration: Calibration = AS_SHIPPED) -> int:
    """What one GPU must have: tensors, what the allocator cannot do without, and what is fixed, at their upper ends."""
    tensors = ledger.peak(Device.GPU, upper=True)
    return round(tensors * (1 + needed_share())) + fixed_band(communicators, calibration).upper


def gpu_fits(ledger: Ledger, gpu: Gpu, world_size: int) -> bool:
    """Whether the upper bound is within the capacity; `gpu_memory` says the rest."""
    return gpu_upper_bound_bytes(ledger, 1 if world_size > 1 else 0, gpu.calibration) <= gpu.memory_bytes


def gpu_memory(ledger: Ledger, gpu: Gpu, communicators: int) -> GpuMemory:
    """Peak of one GPU against what the driver reports, under the allocator that our launch command sets.

    reserved = allocated (1 + fragmentation); device = reserved + context + communicators; the upper bound takes every
    term at its upper end. Memory model §F1, §F2.
    """
    return memory_of(ledger, gpu.memory_bytes, communicators=communicators, calibration=gpu.calibration)


def memory_of(
    ledger: Ledger,
    capacity_bytes: int,
    *,
    communicators: int,
    allocator: Allocator = Allocator.EXPANDABLE,
    calibration: Calibration = AS_SHIPPED,
) -> GpuMemory:
    """Peak of one GPU of any capacity.

    Args:
        ledger: its lines.
        capacity_bytes: what the driver reports.
        communicators: groups of ranks that communicate.
        allocator: what is kept of memory that tensors gave back.
        calibration: the platform's own figures; the ledger carries its live excess already.

    Returns:
        Bytes. Cached segments are given back before an out-of-memory, so that neither reserved nor device memory
        exceeds the capacity unless tensors do.
    """
    phases = ledger.by_phase(Device.GPU)
    fullest = max(phases, key=lambda phase: phases[phase])
    allocated = Band(ledger.lowest(Device.GPU, fullest), phases[fullest], ledger.peak(Device.GPU, upper=True))
    fixed = fixed_band(communicators, calibration)
    share = _figure(FRAGMENTATION[allocator], calibration)
    held = _reserved(allocated, min(phases[p] for p in TRAINING) if allocator is Allocator.VARYING else 0, share)
    room = capacity_bytes - fixed.point
    reserved = Band(
        *(max(tensors, min(size, room)) for tensors, size in zip(_ends(allocated), _ends(held), strict=True))
    )
    return GpuMemory(
        capacity_bytes=capacity_bytes,
        allocated=allocated,
        reserved=reserved,
        device=_on_device(reserved, fixed, capacity_bytes),
        upper_bound_bytes=gpu_upper_bound_bytes(ledger, communicators, calibration),
        fullest=fullest,
    )


def _on_device(reserved: Band, fixed: Band, capacity_bytes: int) -> Band:
    """With context and communicators; not more than there is, unless tensors are."""
    least = reserved.upper + fixed.point
    upper = max(least, min(reserved.upper + fixed.upper, capacity_bytes))
    return Band(reserved.low + fixed.low, reserved.point + fixed.point, upper)


def _ends(band: Band) -> tuple[int, int, int]:
    return band.low, band.point, band.upper


def _reserved(allocated: Band, lasting_bytes: int, share: Overhead | Range) -> Band:
    """Allocated memory and its share on top; of varying shapes only what comes and goes is kept in parts."""
    ends = zip(_ends(allocated), (share.low, share.point, share.upper), strict=True)
    return Band(*(round(size + max(0, size - lasting_bytes) * part) for size, part in ends))


FRAGMENTATION = {
    Allocator.EXPANDABLE: "fragmentation",
    Allocator.NATIVE: "fragmentation_native",
    Allocator.VARYING: "fragmentation_varying",
}


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
