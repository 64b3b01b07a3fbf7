"""planner/memory.py: allocated, reserved, device, upper bound; host RAM and NVMe of a node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainplan.planner import catalog
from trainplan.planner.computation import Computation
from trainplan.planner.hardware import Node
from trainplan.planner.ledger import ALWAYS, Device, Entry, Item, Ledger, Phase, Tensors
from trainplan.planner.memory import fixed_device_bytes, gpu_memory, host_memory, nvme_memory
from trainplan.planner.overheads import overhead
from trainplan.planner.units import GIB

from ..tiny import machines

EMPTY = Ledger(trainable=Tensors(()), frozen=Tensors(()), computation=Computation())
GPU = catalog.find_gpu("a100-40")


def node(host_gib: int | None) -> Node:
    """Two GPUs, and that much RAM."""
    return machines(host_gib=host_gib).node


def test_the_three_numbers() -> None:
    """reserved = allocated (1 + f); device = reserved + context + communicators; upper ends bound."""
    ledger = EMPTY.plus(Entry(Item.WEIGHTS, Device.GPU, 10 * GIB, ALWAYS, ""))
    memory = gpu_memory(ledger, GPU, 8)
    share, fixed = overhead("fragmentation"), (overhead("context"), overhead("collectives"))
    assert memory.allocated_bytes == 10 * GIB
    assert memory.reserved_bytes == round(10 * GIB * (1 + share.point))
    assert memory.device_bytes == memory.reserved_bytes + round(sum(x.point for x in fixed) * GIB)
    assert memory.upper_bound_bytes == round(10 * GIB * (1 + share.upper)) + round(sum(x.upper for x in fixed) * GIB)
    assert memory.allocated_bytes < memory.reserved_bytes < memory.device_bytes < memory.upper_bound_bytes


def test_one_gpu_has_no_communicators() -> None:
    """NCCL is not there with one rank."""
    saved = fixed_device_bytes(2, upper=True) - fixed_device_bytes(1, upper=True)
    assert saved == round(overhead("collectives").upper * GIB)


def test_the_upper_bound_decides() -> None:
    """A ledger whose point estimate fits and whose bound does not, does not fit."""
    capacity = GPU.memory_bytes
    tight = EMPTY.plus(Entry(Item.WEIGHTS, Device.GPU, int(capacity * 0.93), ALWAYS, ""))
    memory = gpu_memory(tight, GPU, 1)
    assert memory.reserved_bytes < capacity
    assert not memory.fits


def test_the_fullest_phase_is_named() -> None:
    """For messages."""
    ledger = EMPTY.plus(
        Entry(Item.WEIGHTS, Device.GPU, 1, ALWAYS, ""), Entry(Item.LOGITS, Device.GPU, 1, (Phase.LOSS,), "")
    )
    assert gpu_memory(ledger, GPU, 1).fullest is Phase.LOSS


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
