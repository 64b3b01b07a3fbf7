"""PyTorch's CUDA caching allocator replayed on a stream of allocations: what it reserves for what is allocated.

Constants are those of torch 2.13.0, c10/core/AllocatorConfig.h; rules those of c10/cuda/CUDACachingAllocator.cpp
(round_size, get_allocation_size, get_free_block, should_split, try_merge_blocks, find_expandable_block, map_block,
unmap_block, release_cached_blocks). Not modelled: several streams and blocks that wait for another stream's event;
graph pools, max_split_size, roundup_power2_divisions and garbage_collection_threshold, all off by default; and the
addresses that the driver gives to new segments, which break ties between free blocks of one size.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .units import MIB

BLOCK_BYTES = 512  # kMinBlockSize: every request is rounded up to a multiple
SMALL_REQUEST_BYTES = 1 * MIB  # kSmallSize: up to here a request is served by the small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer: segment, or page of an expandable segment, of the small pool
LARGE_SEGMENT_BYTES = 20 * MIB  # large_segment_size: the same of the large pool
LARGE_REQUEST_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a request gets a segment of its own size
SEGMENT_ROUNDING_BYTES = 2 * MIB  # kRoundLarge: which is rounded up to a multiple of this
FREE = -1
"""In place of the bytes of an event: the allocation of this id is freed."""

Event = tuple[int, int]
"""(id, bytes) allocates, (id, FREE) frees what the id holds."""

_ADDRESS_SPACE = 2**62  # distance of expandable segments: torch reserves 9/8 of the GPU, more than can be mapped


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a stream of allocations took from the allocator, in bytes.

    ``live`` counts what was asked for, ``allocated`` the same in whole blocks (torch.cuda.memory_allocated),
    ``reserved`` the segments that hold them (torch.cuda.memory_reserved).
    """

    peak_live: int
    peak_allocated: int
    peak_reserved: int
    allocated: int
    reserved: int
    retries: int
    """Times that cached segments were given back because a new one did not fit."""
    failed_event: int | None
    """Index of the event that ran out of memory; the replay ends there."""

    @property
    def overhead_fraction(self) -> float:
        """Peak reserved above peak allocated, as a share of peak allocated."""
        return self.peak_reserved / self.peak_allocated - 1 if self.peak_allocated else 0.0


def rounded_bytes(request: int) -> int:
    """Bytes of the block that serves a request.

    Source: CUDACachingAllocator.cpp, round_size.

    >>> rounded_bytes(1), rounded_bytes(513)
    (512, 1024)
    """
    return max(BLOCK_BYTES, _round_up(request, BLOCK_BYTES))


def segment_bytes(block: int) -> int:
    """Bytes of the segment that is asked of the driver for a block, without expandable segments.

    Source: CUDACachingAllocator.cpp, get_allocation_size.

    >>> [segment_bytes(mib * MIB) // MIB for mib in (1, 2, 10, 11)]
    [2, 20, 10, 12]
    """
    if block <= SMALL_REQUEST_BYTES:
        return SMALL_SEGMENT_BYTES
    return LARGE_SEGMENT_BYTES if block < LARGE_REQUEST_BYTES else _round_up(block, SEGMENT_ROUNDING_BYTES)


def replay(events: Iterable[Event], *, expandable: bool = False, capacity: int | None = None) -> Replay:
    """Replay allocations in order.

    Args:
        events: (id, bytes) or (id, FREE); an id may be used again once it is freed; 0 bytes take no block.
        expandable: as under ``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``.
        capacity: Bytes that segments may take together; None is no limit.

    Returns:
        Peaks, what was held at the end, and the event that did not fit, if one did not.

    Raises:
        KeyError: an id is freed that holds nothing.
        ValueError: an id is allocated that still holds something, or the bytes are negative.

    >>> replay([(1, 3 * MIB), (2, 3 * MIB), (1, FREE)]).peak_reserved // MIB
    20
    """
    allocator = _Allocator(expandable, capacity)
    held: dict[int, tuple[_Block | None, int]] = {}
    live = peak_live = 0
    failed = None
    for index, (key, size) in enumerate(events):
        if size == FREE:
            block, freed = held.pop(key)
            live -= freed
            if block is not None:
                allocator.free(block)
            continue
        if size < 0 or key in held:
            raise ValueError(f"event {index}: id {key} is still held, or {size} bytes are negative; free an id first")
        block = allocator.allocate(rounded_bytes(size)) if size else None
        if size and block is None:
            failed = index
            break
        held[key] = (block, size)
        live += size
        peak_live = max(peak_live, live)
    return allocator.result(peak_live, failed)


def smallest_capacity_bytes(events: Sequence[Event], *, expandable: bool, step: int = LARGE_SEGMENT_BYTES) -> int:
    """Capacity at which a stream is replayed to its end: what fitting takes once caches are given back.

    Found by halving, to a step, between peak allocated and peak reserved without a limit; a stream that passes at one
    capacity and fails at a larger one (the cache differs) is taken at the capacity where halving ends.
    """
    free = replay(events, expandable=expandable)
    low, high = free.peak_allocated, free.peak_reserved
    while high - low > step:
        middle = (low + high) // 2
        passes = replay(events, expandable=expandable, capacity=middle).failed_event is None
        low, high = (low, middle) if passes else (middle, high)
    return high


def _round_up(size: int, multiple: int) -> int:
    return (size + multiple - 1) // multiple * multiple


class _Block:
    """A range of a segment: in use, free, or (expandable segments) an address range without memory."""

    __slots__ = ("address", "after", "before", "in_use", "mapped", "pool", "size")

    def __init__(self, pool: _Pool, address: int, size: int, *, mapped: bool) -> None:
        self.pool = pool
        self.address = address
        self.size = size
        self.mapped = mapped
        self.in_use = False
        self.before: _Block | None = None
        self.after: _Block | None = None

    def split(self, size: int) -> _Block:
        """Keep the first ``size`` bytes and return the rest, free and in no list."""
        rest = _Block(self.pool, self.address + size, self.size - size, mapped=self.mapped)
        rest.before, rest.after = self, self.after
        if self.after is not None:
            self.after.before = rest
        self.after = rest
        self.size = size
        return rest

    def absorb_after(self, other: _Block) -> None:
        self.size += other.size
        self.after = other.after
        if other.after is not None:
            other.after.before = self


class _Pool:
    """Free blocks ordered by size and address, unmapped ranges ordered by address."""

    __slots__ = ("free", "page", "smallest_rest", "unmapped")

    def __init__(self, page: int, smallest_rest: int) -> None:
        self.page = page
        self.smallest_rest = smallest_rest
        self.free: list[tuple[int, int, _Block]] = []
        self.unmapped: list[tuple[int, _Block]] = []

    def put(self, block: _Block) -> None:
        if block.mapped:
            insort(self.free, (block.size, block.address, block))
        else:
            insort(self.unmapped, (block.address, block))

    def remove(self, block: _Block) -> None:
        if block.mapped:
            del self.free[bisect_left(self.free, (block.size, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, (block.address,))]


class _Allocator:
    def __init__(self, expandable: bool, capacity: int | None) -> None:
        self.expandable = expandable
        self.capacity = capacity
        # should_split: any rest of a block in the small pool or in expandable segments, else more than kSmallSize
        self.small = _Pool(SMALL_SEGMENT_BYTES, BLOCK_BYTES)
        self.large = _Pool(LARGE_SEGMENT_BYTES, BLOCK_BYTES if expandable else SMALL_REQUEST_BYTES + 1)
        self.allocated = self.peak_allocated = self.reserved = self.peak_reserved = self.retries = self.next_address = 0

    def result(self, peak_live: int, failed_event: int | None) -> Replay:
        return Replay(
            peak_live=peak_live,
            peak_allocated=self.peak_allocated,
            peak_reserved=self.peak_reserved,
            allocated=self.allocated,
            reserved=self.reserved,
            retries=self.retries,
            failed_event=failed_event,
        )

    def allocate(self, size: int) -> _Block | None:
        """A block from the cache, from a new segment, or from one after giving caches back; else None."""
        pool = self.small if size <= SMALL_REQUEST_BYTES else self.large
        block = self._from_cache(pool, size) or self._from_driver(pool, size)
        if block is None:
            self.retries += 1
            self._release_cached()
            block = self._from_driver(pool, size)
        if block is None:
            return None
        if block.size - size >= pool.smallest_rest:
            pool.put(block.split(size))
        block.in_use = True
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def free(self, block: _Block) -> None:
        self.allocated -= block.size
        block.in_use = False
        block.pool.put(_merged(block))

    def _from_cache(self, pool: _Pool, size: int) -> _Block | None:
        """Best fit; in expandable segments the next larger blocks too, while those could grow less.

        Source: get_free_block.
        """
        free = pool.free
        index = bisect_left(free, (size,))
        if index == len(free):
            return None
        if self.expandable:
            while index + 1 < len(free) and _growth(free[index + 1][2]) < _growth(free[index][2]):
                index += 1
        return free.pop(index)[2]

    def _from_driver(self, pool: _Pool, size: int) -> _Block | None:
        return self._expand(pool, size) if self.expandable else self._new_segment(pool, segment_bytes(size))

    def _new_segment(self, pool: _Pool, size: int) -> _Block | None:
        if not self._reserve(size):
            return None
        block = _Block(pool, self.next_address, size, mapped=True)
        self.next_address += size
        return block

    def _reserve(self, size: int) -> bool:
        if self.capacity is not None and self.reserved + size > self.capacity:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _expand(self, pool: _Pool, size: int) -> _Block | None:
        """Map pages after a free block, or in a gap, until it is large enough.

        Source: try_allocate_expandable_block.
        """
        block = self._expandable_block(pool, size)
        if not block.mapped:
            grown = self._map(block, min(block.size, size))
            if grown is None:
                return None
            block = grown
        while block.size < size:
            gap = block.after
            assert gap is not None, "_expandable_block found the address space"
            grown = self._map(gap, min(size - block.size, gap.size))
            if grown is None:
                return None
            block = grown
        pool.remove(block)
        return block

    def _expandable_block(self, pool: _Pool, size: int) -> _Block:
        """The lowest gap with room, with the free block before it. Source: find_expandable_block."""
        for _, gap in pool.unmapped:
            start = gap.before if gap.before is not None and not gap.before.in_use else gap
            if _has_room(start, size):
                return start
        segment = _Block(pool, self.next_address, _ADDRESS_SPACE, mapped=False)
        self.next_address += _ADDRESS_SPACE
        pool.put(segment)
        return segment

    def _map(self, gap: _Block, size: int) -> _Block | None:
        """Give whole pages of memory to the start of a gap; the block that they are then part of. Source: map_block."""
        mapped = _round_up(size, gap.pool.page)
        if not self._reserve(mapped):
            return None
        gap.pool.remove(gap)
        if mapped < gap.size:
            gap.pool.put(gap.split(mapped))
        gap.mapped = True
        block = _merged(gap)
        block.pool.put(block)
        return block

    def _release_cached(self) -> None:
        """Give back free segments, or the whole pages of free blocks. Source: release_blocks."""
        for pool in (self.large, self.small):
            for _, _, block in list(pool.free):
                if self.expandable:
                    self._unmap(block)
                elif block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved -= block.size

    def _unmap(self, block: _Block) -> None:
        """Take the memory of the whole pages inside a free block. Source: unmap_block."""
        pool = block.pool
        start = _round_up(block.address, pool.page)
        end = (block.address + block.size) // pool.page * pool.page
        if start >= end:
            return
        pool.remove(block)
        if start > block.address:
            rest = block.split(start - block.address)
            pool.put(block)
            block = rest
        if end < block.address + block.size:
            pool.put(block.split(end - block.address))
        block.mapped = False
        self.reserved -= block.size
        pool.put(_merged(block))


def _merged(block: _Block) -> _Block:
    """Join a block that is in no list with its free neighbours of the same kind. Source: try_merge_blocks."""
    after, before = block.after, block.before
    if after is not None and not after.in_use and after.mapped == block.mapped:
        block.pool.remove(after)
        block.absorb_after(after)
    if before is not None and not before.in_use and before.mapped == block.mapped:
        block.pool.remove(before)
        before.absorb_after(block)
        return before
    return block


def _growth(block: _Block) -> int:
    """The size that a free block could be grown to, if pages were mapped behind it."""
    after = block.after
    return block.size + (after.size if after is not None and not after.mapped else 0)


def _has_room(block: _Block, size: int) -> bool:
    room, at = 0, block
    while not at.in_use:
        room += at.size
        if room >= size:
            return True
        if at.after is None:
            return False
        at = at.after
    return False
