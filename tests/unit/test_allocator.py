"""The caching allocator's model: rounding, pools, splitting, best fit, merging, expandable segments, giving back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.allocator import (
    BLOCK_BYTES,
    FREE,
    Event,
    replay,
    rounded_bytes,
    segment_bytes,
    smallest_capacity_bytes,
)
from trainplan.planner.units import MIB


def allocate(*sizes_mib: float) -> list[Event]:
    """Allocations of these MiB, with the ids 0, 1, 2, ..."""
    return [(index, int(size * MIB)) for index, size in enumerate(sizes_mib)]


def test_requests_are_rounded_up_to_512_bytes() -> None:
    """One byte takes a block, 512 take one, 513 two."""
    assert [rounded_bytes(size) for size in (1, 512, 513)] == [512, 512, 1024]
    result = replay([(0, 1), (1, 513)])
    assert (result.peak_live, result.peak_allocated) == (1 + 513, 512 + 1024)


def test_segments_have_three_sizes() -> None:
    """2 MiB up to 1 MiB, 20 MiB below 10 MiB, else the next multiple of 2 MiB."""
    assert segment_bytes(MIB) == 2 * MIB
    assert segment_bytes(MIB + BLOCK_BYTES) == segment_bytes(10 * MIB - BLOCK_BYTES) == 20 * MIB
    assert segment_bytes(10 * MIB) == 10 * MIB
    assert segment_bytes(10 * MIB + BLOCK_BYTES) == 12 * MIB


def test_small_and_large_requests_do_not_share_segments() -> None:
    """2 MiB for the small one, 20 MiB for the large one, although each would fit beside the other."""
    assert replay(allocate(0.5, 2)).peak_reserved == (2 + 20) * MIB


def test_a_segment_is_split_until_it_is_used_up() -> None:
    """Six requests of 3 MiB share 20 MiB; the seventh does not fit into the 2 MiB left."""
    assert replay(allocate(*[3] * 6)).peak_reserved == 20 * MIB
    assert replay(allocate(*[3] * 7)).peak_reserved == 40 * MIB


def test_a_rest_of_at_most_1_mib_stays_with_its_block() -> None:
    """19.5 MiB of a segment of 20: the whole segment counts as allocated; expandable segments split it off."""
    events = [*allocate(19), (0, FREE), (1, 19 * MIB + MIB // 2)]
    assert replay(events).allocated == 20 * MIB
    assert replay(events, expandable=True).allocated == 19.5 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    """After 40, 12 and 40 MiB are free apart, 11 MiB go into the 12, so that 40 and 40 still find their place."""
    events = [*allocate(40, 12, 40), (0, FREE), (1, FREE), (2, FREE), (3, 11 * MIB), (4, 40 * MIB), (5, 40 * MIB)]
    assert replay(events).peak_reserved == (40 + 12 + 40) * MIB


def test_free_neighbours_merge_within_a_segment() -> None:
    """Three blocks of 6 MiB, freed in any order, serve one request of 18."""
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1)):
        events = [*allocate(6, 6, 6), *((index, FREE) for index in order), (3, 18 * MIB)]
        assert replay(events).peak_reserved == 20 * MIB


def test_segments_do_not_merge() -> None:
    """Two free segments of 20 MiB do not serve 40: fragmentation. Expandable segments grow together."""
    events = [*allocate(20, 20), (0, FREE), (1, FREE), (2, 40 * MIB)]
    assert replay(events).peak_reserved == 80 * MIB
    assert replay(events, expandable=True).peak_reserved == 40 * MIB


def test_an_expandable_segment_grows_by_its_pages() -> None:
    """21 MiB take two pages of 20; 0.5 MiB take one of 2; 30 MiB more use the 19 left and one page more."""
    assert replay(allocate(21), expandable=True).peak_reserved == 40 * MIB
    assert replay(allocate(0.5), expandable=True).peak_reserved == 2 * MIB
    assert replay(allocate(21, 30), expandable=True).peak_reserved == 60 * MIB


def test_a_hole_too_small_for_a_growing_request_stays() -> None:
    """A hole of 20 MiB before a block in use is passed over by 21: the segment's end grows instead."""
    events = [*allocate(20, 20), (0, FREE), (2, 21 * MIB)]
    assert replay(events, expandable=True).peak_reserved == (20 + 20 + 40) * MIB


def test_cached_segments_are_given_back_before_memory_runs_out() -> None:
    """With 60 MiB, 40 fit after 20 and 20 were freed, because both are given back; with 20 MiB they never do."""
    events = [*allocate(20, 20), (0, FREE), (1, FREE), (2, 40 * MIB)]
    result = replay(events, capacity=60 * MIB)
    assert (result.retries, result.failed_event, result.reserved) == (1, None, 40 * MIB)
    assert replay(events, capacity=20 * MIB).failed_event == 1


def test_a_split_segment_cannot_be_given_back() -> None:
    """3 MiB in use keep 20 MiB reserved; expandable segments give back whole pages of a free block."""
    events = [*allocate(3, 14), (1, FREE), (2, 40 * MIB)]
    assert replay(events, capacity=50 * MIB).failed_event == 3
    freed = [*allocate(3, 50), (1, FREE), (2, 0.75 * MIB)]
    whole = replay([(k, int(n)) for k, n in freed], expandable=True, capacity=61 * MIB)
    assert (whole.failed_event, whole.retries, whole.reserved) == (None, 1, (20 + 2) * MIB)


def test_what_was_unmapped_is_mapped_again() -> None:
    """20 of 60 MiB are given back from the middle of a segment, and later requests find that gap first."""
    events = [*allocate(20, 20, 20), (1, FREE), (3, MIB // 2), (3, FREE), (4, 20 * MIB)]
    result = replay(events, expandable=True, capacity=60 * MIB)
    assert result.failed_event is None
    assert result.retries == 2
    assert result.reserved == 60 * MIB


def test_smallest_capacity_lies_between_allocated_and_reserved() -> None:
    """20 and 20 freed, then 40: 80 MiB reserved without a limit, 40 suffice (to a step of 1 MiB)."""
    events = [*allocate(20, 20), (0, FREE), (1, FREE), (2, 40 * MIB)]
    assert 40 * MIB <= smallest_capacity_bytes(events, expandable=False, step=MIB) <= 41 * MIB


def test_wrong_streams_are_refused() -> None:
    """An id is allocated once at a time, and freed only when held; negative sizes other than FREE do not exist."""
    for events in ([(0, 1), (0, 1)], [(0, -2)]):
        with pytest.raises(ValueError, match="free an id first"):
            replay(events)
    with pytest.raises(KeyError):
        replay([(0, FREE)])


def test_nothing_takes_nothing() -> None:
    """Zero bytes are an id without a block; no events, no overhead."""
    assert replay([(0, 0), (0, FREE)]).peak_reserved == 0
    assert replay([]).overhead_fraction == 0


SIZES = st.one_of(st.integers(0, 4096), st.integers(0, 3 * MIB), st.integers(0, 60 * MIB))


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Allocations and frees in any order; some are never freed."""
    events: list[Event] = []
    held: list[int] = []
    for index, (size, victim) in enumerate(draw(st.lists(st.tuples(SIZES, st.integers(-60, 59)), max_size=60))):
        if held and victim >= 0:
            events.append((held.pop(victim % len(held)), FREE))
        else:
            events.append((index, size))
            held.append(index)
    return events


@given(streams(), st.booleans())
def test_reserved_is_at_least_allocated_and_allocated_at_least_live(events: list[Event], expandable: bool) -> None:
    """Blocks hold requests and segments hold blocks, at the end and at the peaks."""
    result = replay(events, expandable=expandable)
    assert result.peak_reserved >= result.peak_allocated >= result.peak_live >= 0
    assert result.reserved >= result.allocated >= 0


@given(streams(), st.booleans())
def test_freeing_everything_leaves_nothing_allocated(events: list[Event], expandable: bool) -> None:
    """Allocated is 0 then; what is reserved stays cached, and a request of all of it takes it back."""
    held = {key for key, size in events if size != FREE} - {key for key, size in events if size == FREE}
    result = replay([*events, *((key, FREE) for key in held)], expandable=expandable)
    assert result.allocated == 0
    assert result.reserved == result.peak_reserved


@given(streams())
def test_expandable_blocks_are_never_larger_than_rounded_requests(events: list[Event]) -> None:
    """Any rest is split off, so that allocated is the sum of rounded requests."""
    sizes = dict(event for event in events if event[1] != FREE)
    freed = {key for key, size in events if size == FREE}
    held = sum(rounded_bytes(size) for key, size in sizes.items() if size and key not in freed)
    assert replay(events, expandable=True).allocated == held


@given(streams(), st.booleans(), st.integers(0, 400))
def test_a_capacity_is_never_exceeded(events: list[Event], expandable: bool, capacity_mib: int) -> None:
    """Reserved stays within it; one that is never reached changes nothing."""
    result = replay(events, expandable=expandable, capacity=capacity_mib * MIB)
    assert result.peak_reserved <= capacity_mib * MIB
    unlimited = replay(events, expandable=expandable)
    if unlimited.peak_reserved <= capacity_mib * MIB:
        assert result == unlimited


@given(streams(), st.booleans())
def test_a_stream_repeated_reserves_no_less(events: list[Event], expandable: bool) -> None:
    """A second, equal step needs at least what one needs, and its allocated peak is the same within held blocks."""
    keys = {key for key, _ in events}
    closed = [*events, *((key, FREE) for key in keys - {key for key, size in events if size == FREE})]
    once, twice = (replay(closed * times, expandable=expandable) for times in (1, 2))
    assert twice.peak_reserved >= once.peak_reserved
    assert twice.peak_live == once.peak_live
