"""planner/ledger.py: lines, phases and the partitions of DeepSpeed."""

from __future__ import annotations

from trainplan.planner.computation import Computation
from trainplan.planner.ledger import (
    ALWAYS,
    Device,
    Entry,
    Item,
    Ledger,
    Phase,
    Tensors,
    flat_partition,
    merged,
    tensor_partition,
    touched,
)

EMPTY = Ledger(trainable=Tensors(()), frozen=Tensors(()), computation=Computation())


def line(item: Item, size: int, *phases: Phase, device: Device = Device.GPU, upper: int = 0) -> Entry:
    """A line without a reason."""
    return Entry(item, device, size, phases or ALWAYS, "", upper=upper)


def test_the_peak_is_the_fullest_phase() -> None:
    """Peak memory is the maximum over phases of what lives in them, not the sum of all lines."""
    ledger = EMPTY.plus(
        line(Item.WEIGHTS, 10), line(Item.LOGITS, 7, Phase.LOSS), line(Item.STEP_TEMPORARIES, 5, Phase.STEP)
    )
    assert ledger.peak(Device.GPU) == 10 + 7
    assert ledger.by_phase(Device.GPU)[Phase.STEP] == 10 + 5
    assert sum(e.bytes for e in ledger.entries) == 10 + 7 + 5


def test_upper_bounds_are_summed_apart() -> None:
    """A line without an upper bound counts with its bytes in both sums; one with a lower one keeps its bytes."""
    ledger = EMPTY.plus(line(Item.WEIGHTS, 10), line(Item.MASTER, 5, upper=8), line(Item.MOMENTS, 5, upper=3))
    assert ledger.peak(Device.GPU) == 10 + 5 + 5
    assert ledger.peak(Device.GPU, upper=True) == 10 + 8 + 5


def test_devices_do_not_mix() -> None:
    """Bytes on the host do not fill the GPU."""
    ledger = EMPTY.plus(line(Item.MASTER, 4), line(Item.MASTER, 40, device=Device.HOST))
    assert (ledger.peak(Device.GPU), ledger.peak(Device.HOST), ledger.peak(Device.NVME)) == (4, 40, 0)
    assert ledger.bytes_of(Item.MASTER, device=Device.HOST) == 40


def test_empty_lines_are_left_out() -> None:
    """A line of no bytes says nothing."""
    assert EMPTY.plus(line(Item.FROZEN, 0)).entries == ()


def test_without_takes_whole_items() -> None:
    """Every line of the named items goes, whatever its device."""
    ledger = EMPTY.plus(line(Item.MASTER, 4), line(Item.MASTER, 40, device=Device.HOST), line(Item.WEIGHTS, 1))
    assert [e.item for e in ledger.without(Item.MASTER).entries] == [Item.WEIGHTS]


def test_flat_partition_is_padded_to_twice_the_ranks() -> None:
    """9 elements on 4 ranks: padded to 16, 4 each."""
    assert flat_partition(Tensors((5, 4)), 4) == 16 // 4
    assert flat_partition(Tensors((5, 4)), 1) == 10  # the flat buffer of one rank is padded to an even count


def test_tensor_partition_pads_every_tensor() -> None:
    """5 and 4 elements on 4 ranks: ceil(5 / 4) + ceil(4 / 4)."""
    assert tensor_partition(Tensors((5, 4)), 4) == 2 + 1


def test_touched_counts_whole_tensors_of_the_worst_rank() -> None:
    """Tensors of 10, 2, 4 on 2 ranks: slices of 8; the first touches 10, the second 10 + 2 + 4."""
    assert touched(Tensors((10, 2, 4)), 2) == 10 + 2 + 4
    assert touched(Tensors((8, 8)), 2) == 8
    assert touched(Tensors(()), 2) == 0


def test_touched_with_more_ranks_than_elements() -> None:
    """Ranks whose slice is padding alone touch nothing; the second slice of 2 is half padding."""
    assert touched(Tensors((3,)), 64) == 3
    assert touched(Tensors((3,)), 64, padded=True) == 3 + 1


def test_later_keys_win_and_none_takes_away() -> None:
    """Sections merge key by key."""
    ledger = EMPTY.keys(optimizer={"type": "AdamW", "params": {"lr": 1, "fused": True}}, a=1)
    changed = ledger.keys(optimizer={"params": {"fused": None, "lr": 2}})
    assert changed.deepspeed == {"optimizer": {"type": "AdamW", "params": {"lr": 2}}, "a": 1}
    assert merged({"a": {"b": 1}}, {"a": 2}) == {"a": 2}


def test_work_of_no_amount_is_left_out() -> None:
    """Like lines."""
    from trainplan.planner.work import Resource, When, Work

    nothing = Work(name="none", resource=Resource.MEMORY, amount=0, when=When.STEP)
    some = Work(name="some", resource=Resource.MEMORY, amount=1, when=When.STEP)
    assert EMPTY.doing(nothing, some).work == (some,)
    assert EMPTY.doing(some).not_doing("some").work == ()
