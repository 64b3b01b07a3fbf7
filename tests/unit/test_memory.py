"""planner/memory.py: allocated, reserved, device, upper bound; host RAM and NVMe of a node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainplan.planner import catalog
from trainplan.planner.computation import Computation
from trainplan.planner.hardware import Node
from trainplan.planner.ledger import ALWAYS, Certainty, Device, Entry, Item, Ledger, Phase, Tensors
from trainplan.planner.memory import (
    Allocator,
    Band,
    fixed_device_bytes,
    gpu_memory,
    host_memory,
    memory_of,
    nvme_memory,
)
from trainplan.planner.overheads import Overhead, overhead
from trainplan.planner.units import GIB

from ..tiny import machines

EMPTY = Ledger(trainable=Tensors(()), frozen=Tensors(()), computation=Computation())
GPU = catalog.find_gpu("a100-40")


def node(host_gib: int | None) -> Node:
    """Two GPUs, and that much RAM."""
    return machines(host_gib=host_gib).node


def test_the_three_numbers() -> None:
    """reserved = allocated (1 + f); device = reserved + context + communicators; what steps need decides what fits."""
    ledger = EMPTY.plus(Entry(Item.WEIGHTS, Device.GPU, 10 * GIB, ALWAYS, ""))
    memory = gpu_memory(ledger, GPU, 1)
    share, fixed = overhead("fragmentation"), (overhead("context"), overhead("collectives"))
    assert memory.allocated_bytes == 10 * GIB
    assert memory.reserved_bytes == round(10 * GIB * (1 + share.point))
    assert memory.device_bytes == memory.reserved_bytes + round(sum(x.point for x in fixed) * GIB)
    needed = round(10 * GIB * (1 + overhead("needed").upper))
    assert memory.upper_bound_bytes == needed + round(sum(x.upper for x in fixed) * GIB)
    assert memory.allocated_bytes < memory.reserved_bytes < memory.device_bytes < memory.upper_bound_bytes


# 10 GiB that last through the step, and 10 that come and go: 20 allocated.
COMES_AND_GOES = EMPTY.plus(
    Entry(Item.WEIGHTS, Device.GPU, 10 * GIB, ALWAYS, ""),
    Entry(Item.SAVED, Device.GPU, 10 * GIB, (Phase.FORWARD, Phase.LOSS), ""),
)
ROOMY = 200 * GIB


@pytest.mark.parametrize(
    ("allocator", "name", "moving"),
    [
        (Allocator.EXPANDABLE, "fragmentation", 20),
        (Allocator.NATIVE, "fragmentation_native", 20),
        (Allocator.VARYING, "fragmentation_varying", 10),
    ],
)
def test_what_an_allocator_keeps(allocator: Allocator, name: str, moving: int) -> None:
    """A share of what is allocated, of varying lengths a share of what comes and goes, on a card with room for it."""
    memory = memory_of(COMES_AND_GOES, ROOMY, communicators=2, allocator=allocator)
    share, context, each = overhead(name), overhead("context"), overhead("collectives")
    assert memory.allocated == Band(20 * GIB, 20 * GIB, 20 * GIB)
    kept = [round(GIB * (20 + moving * part)) for part in (share.low, share.point, share.upper)]
    assert memory.reserved == Band(*kept)
    fixed = [round(GIB * (x + 2 * y)) for x, y in zip(ends(context), ends(each), strict=True)]
    assert memory.device == Band(*(a + b for a, b in zip(kept, fixed, strict=True)))


def ends(figure: Overhead) -> tuple[float, float, float]:
    """A figure's range."""
    return figure.low, figure.point, figure.upper


def test_the_ranges_are_in_order_where_tensors_exceed_the_card() -> None:
    """Each end of device memory is above that of reserved memory, though the upper ends are cut at the capacity."""
    line = Entry(Item.SAVED, Device.GPU, 40 * GIB, ALWAYS, "", Certainty.TRACED)
    memory = gpu_memory(EMPTY.plus(line), GPU, 1)
    for inner, outer in ((memory.allocated, memory.reserved), (memory.reserved, memory.device)):
        assert all(a <= b for a, b in zip(band_ends(inner), band_ends(outer), strict=True))


def band_ends(band: Band) -> tuple[int, int, int]:
    """Low, point, upper."""
    return band.low, band.point, band.upper


def test_shares_of_the_three_allocators() -> None:
    """Expandable segments keep the least; what steps cannot do without is less still."""
    names = ("needed", "fragmentation", "fragmentation_native", "fragmentation_varying")
    assert [overhead(n).point for n in names] == sorted(overhead(n).point for n in names)
    for name in names:
        assert overhead(name).low <= overhead(name).point <= overhead(name).upper


def test_cache_does_not_exceed_the_card() -> None:
    """On 25 GiB, varying lengths would keep 40: given back before an out-of-memory, they fill what there is."""
    memory = memory_of(COMES_AND_GOES, 25 * GIB, communicators=0, allocator=Allocator.VARYING)
    room = 25 * GIB - fixed_device_bytes(1, upper=False)
    assert (memory.reserved.point, memory.reserved.upper) == (room, room)
    assert memory.device.point == 25 * GIB
    assert memory.device.upper == 25 * GIB
    assert memory.fits


def test_tensors_may_exceed_the_card() -> None:
    """20 GiB of tensors on 16: nothing hides that they do not fit."""
    memory = memory_of(COMES_AND_GOES, 16 * GIB, communicators=0)
    assert memory.reserved.point == 20 * GIB
    assert memory.device.point > 16 * GIB
    assert not memory.fits


def test_the_allocator_does_not_decide_what_fits() -> None:
    """Cache is no need: the same bound under all three."""
    bounds = {
        memory_of(COMES_AND_GOES, ROOMY, communicators=1, allocator=allocator).upper_bound_bytes
        for allocator in Allocator
    }
    assert len(bounds) == 1


@pytest.mark.parametrize("certainty", Certainty)
def test_ranges_follow_certainty(certainty: Certainty) -> None:
    """A line is expected within the margin of how it is known; exact lines have none."""
    ledger = EMPTY.plus(Entry(Item.SAVED, Device.GPU, 10 * GIB, ALWAYS, "", certainty))
    band = memory_of(ledger, ROOMY, communicators=0).allocated
    assert band.point == 10 * GIB
    assert band.upper - band.point == band.point - band.low
    assert (band.upper == band.low) is (certainty is Certainty.EXACT)


def test_one_gpu_has_no_communicators() -> None:
    """NCCL is not there with one rank."""
    saved = fixed_device_bytes(2, upper=True) - fixed_device_bytes(1, upper=True)
    assert saved == round(overhead("collectives").upper * GIB)


def test_the_upper_bound_decides() -> None:
    """A ledger whose point estimate fits and whose bound does not, does not fit."""
    capacity = GPU.memory_bytes
    tight = EMPTY.plus(Entry(Item.WEIGHTS, Device.GPU, int(capacity * 0.93), ALWAYS, ""))
    memory = gpu_memory(tight, GPU, 0)
    assert memory.reserved_bytes < capacity
    assert not memory.fits


def test_the_fullest_phase_is_named() -> None:
    """For messages."""
    ledger = EMPTY.plus(
        Entry(Item.WEIGHTS, Device.GPU, 1, ALWAYS, ""), Entry(Item.LOGITS, Device.GPU, 1, (Phase.LOSS,), "")
    )
    assert gpu_memory(ledger, GPU, 0).fullest is Phase.LOSS


def test_the_host_holds_all_ranks() -> None:
    """Bytes of a rank x ranks of the node, against the RAM less the system's share."""
    ledger = EMPTY.plus(Entry(Item.MASTER, Device.HOST, 20 * GIB, ALWAYS, "", upper=32 * GIB))
    memory = host_memory(ledger, node(64), 2)
    assert (memory.needed_bytes, memory.upper_bound_bytes) == (2 * 20 * GIB, 2 * 32 * GIB)
    assert memory.capacity_bytes == int(64 * GIB * 0.95)
    assert not memory.fits
    assert host_memory(ledger, node(70), 2).fits


@pytest.mark.parametrize(("item", "fits"), [(Item.MASTER, False), (Item.PROCESS, True)])
def test_unknown_ram_is_no_ram_for_what_leans_on_it(item: Item, fits: bool) -> None:
    """A plan may not put states into memory that nobody knows; the processes alone need no proof."""
    memory = host_memory(EMPTY.plus(Entry(item, Device.HOST, GIB, ALWAYS, "")), node(None), 2)
    assert memory.fits is fits
    assert not memory.checked


def test_nvme_likewise() -> None:
    """Unknown NVMe holds nothing; known NVMe holds what it holds."""
    ledger = EMPTY.plus(Entry(Item.MASTER, Device.NVME, GIB, ALWAYS, ""))
    assert not nvme_memory(ledger, node(64), 2).fits
    assert nvme_memory(ledger, replace(node(64), nvme_bytes=2 * GIB), 2).fits
    assert nvme_memory(EMPTY, node(64), 2).fits
