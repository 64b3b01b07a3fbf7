"""The allocator's model against PyTorch's own, which only a CUDA build has, and against what PyTorch's tests assert."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from trainplan.planner.allocator import FREE, Event, replay
from trainplan.planner.units import MIB

pytestmark = pytest.mark.oracle

torch = pytest.importorskip("torch")

PROBE = Path(__file__).with_name("caching_allocator_probe.py")
EVENTS = 1000
MOST_LIVE = 60
# Among free blocks of one size the lowest address is taken, and the driver chooses the addresses of separate segments.
TIES = 0.02
TOTAL = 80_000 * MIB


def stream(seed: int) -> list[Event]:
    """Allocations and frees of all sizes, small ones more often."""
    draw = random.Random(seed)
    events: list[Event] = []
    held: list[int] = []
    for index in range(EVENTS):
        if len(held) == MOST_LIVE or (held and draw.random() < 0.48):
            events.append((held.pop(draw.randrange(len(held))), FREE))
        else:
            events.append((index, int(2 ** draw.uniform(4, 27))))
            held.append(index)
    return events


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU: its CUDA allocator cannot be run")
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("expandable", [False, True])
def test_torch_allocates_and_reserves_the_same(expandable: bool, seed: int) -> None:
    """After every event in expandable segments, which have one address range; at the peak, up to ties, without."""
    events = stream(seed)
    setting = {"PYTORCH_CUDA_ALLOC_CONF": f"expandable_segments:{expandable}"}
    command = [sys.executable, str(PROBE)]
    done = subprocess.run(
        command, input=json.dumps(events), env=os.environ | setting, stdout=subprocess.PIPE, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    if expandable:
        ours = [replay(events[: n + 1], expandable=True) for n in range(len(events))]
        assert theirs == [[r.allocated, r.reserved] for r in ours]
        return
    ours_peak = replay(events).peak_reserved
    assert ours_peak == pytest.approx(max(reserved for _, reserved in theirs), rel=TIES)


@pytest.mark.parametrize("expandable", [False, True])
def test_half_of_the_memory_twice_fits_after_it_is_freed(expandable: bool) -> None:
    """PyTorch's test_cuda.py, test_out_of_memory_retry: the second half does not fit beside the first, then it does."""
    half = TOTAL // 2
    capacity = TOTAL - 500 * MIB  # a context takes the rest
    assert replay([(0, half), (1, half)], expandable=expandable, capacity=capacity).failed_event == 1
    assert replay([(0, half), (0, FREE), (1, half)], expandable=expandable, capacity=capacity).failed_event is None


def test_memory_of_a_fraction_fits_after_it_is_freed() -> None:
    """PyTorch's test_cuda.py, test_set_per_process_memory_fraction: 0.499 of the memory fits into a half of it."""
    capacity, request = TOTAL // 2, int(TOTAL * 0.499)
    assert replay([(0, request), (0, FREE), (1, request)], capacity=capacity).failed_event is None
    assert replay([(0, TOTAL // 2 + 3 * MIB)], capacity=capacity).failed_event == 0


def test_1_mib_uses_the_small_pool() -> None:
    """PyTorch's test_1mb_allocation_uses_small_block: b = b.clone() + 1, five times, leaves 2 MiB in 4 MiB."""
    events: list[Event] = [(0, MIB), (1, MIB)]
    for last in range(1, 11, 2):
        clone, sum_ = last + 1, last + 2
        events += [(clone, MIB), (sum_, MIB), (clone, FREE), (last, FREE)]
    result = replay(events)
    assert (result.allocated, result.reserved) == (2 * MIB, 4 * MIB)
