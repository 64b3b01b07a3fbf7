"""planner/measurements/score.py, document.py: errors, ranges, decisions, grades, and what could not be judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from trainplan.planner.computation import Computation
from trainplan.planner.ledger import ALWAYS, Device, Entry, Item, Ledger, Phase, Tensors
from trainplan.planner.measurements.document import document
from trainplan.planner.measurements.score import (
    OPEN,
    UNCOUNTED,
    UNTIMED,
    Errors,
    Prediction,
    Rate,
    Scored,
    Validation,
    band_of,
    validate,
)
from trainplan.planner.measurements.table import Measurement, MemoryKind, Unsupported
from trainplan.planner.memory import Band, GpuMemory
from trainplan.planner.report.validation_text import validation_text
from trainplan.planner.units import GIB

from ..measured_rows import row_of, table_of

LEDGER = Ledger(trainable=Tensors(()), frozen=Tensors(()), computation=Computation()).plus(
    Entry(Item.WEIGHTS, Device.GPU, 5 * GIB, ALWAYS, ""),
    Entry(Item.LOGITS, Device.GPU, 6 * GIB, (Phase.LOSS,), ""),
    Entry(Item.MASTER, Device.HOST, 9 * GIB, ALWAYS, ""),
    Entry(Item.STEP_TEMPORARIES, Device.GPU, 1 * GIB, (Phase.STEP,), ""),
)


def predicted(*, fits: bool | None = True, rate: float | None = 100.0) -> Prediction:
    """11 GiB allocated (10 to 12), 15 reserved (13 to 17), 20 on the device (18 to 22)."""
    bands = ((10, 11, 12), (13, 15, 17), (18, 20, 22))
    allocated, reserved, device = (Band(low * GIB, point * GIB, upper * GIB) for low, point, upper in bands)
    memory = GpuMemory(
        capacity_bytes=80 * GIB,
        allocated=allocated,
        reserved=reserved,
        device=device,
        upper_bound_bytes=22 * GIB,
        fullest=Phase.LOSS,
    )
    band = None if rate is None else Rate(0.9 * rate, rate, 1.2 * rate)
    return Prediction(memory=memory, ledger=LEDGER, fits=fits, rate=band)


def judged(*rows: dict[str, str], predict: Callable[[Measurement], Prediction] = lambda _: predicted()) -> Validation:
    """Rows with a fixed prediction."""
    return validate(table_of(*rows), predict)


def errors_of(*pairs: tuple[float, float]) -> Errors:
    """(predicted, measured), in a range of a tenth around the prediction."""
    return Errors(
        scored=tuple(Scored(row=row_of(), predicted=p, measured=m, low=0.9 * p, upper=1.1 * p) for p, m in pairs)
    )


def test_errors_by_hand() -> None:
    """Errors +10 %, -20 %, +30 %: MAPE 20, median 20, bias 20/3."""
    errors = errors_of((110, 100), (80, 100), (130, 100))
    assert [s.error for s in errors.scored] == pytest.approx([0.1, -0.2, 0.3])
    assert errors.mape_percent == pytest.approx((10 + 20 + 30) / 3)
    assert errors.median_percent == pytest.approx(20)
    assert errors.bias_percent == pytest.approx((10 - 20 + 30) / 3)
    assert errors.within_band_percent == pytest.approx(100 / 3)  # 100 lies in 99 to 121 alone
    assert [s.predicted for s in errors.worst] == [130, 80, 110]


def test_no_rows_have_no_errors() -> None:
    """Nothing judged is None, not zero."""
    empty = Errors(scored=())
    assert (empty.mape_percent, empty.median_percent, empty.bias_percent, empty.within_band_percent) == (None,) * 4


@pytest.mark.parametrize(
    ("kind", "point"), [(MemoryKind.ALLOCATED, 11), (MemoryKind.RESERVED, 15), (MemoryKind.DEVICE, 20)]
)
def test_each_kind_has_its_band(kind: MemoryKind, point: int) -> None:
    """The three memories are not mixed."""
    assert band_of(predicted().memory, kind).point == point * GIB


def test_a_row_is_compared_with_its_kind() -> None:
    """12.5 GiB allocated is above the range, reserved below it, 18 on the device inside."""
    found = judged(
        {"peak_mem_gib": "12.5"},
        {"peak_mem_gib": "12.5", "mem_kind": "reserved"},
        {"peak_mem_gib": "18", "mem_kind": "nvidia-smi"},
    )
    assert [s.within for s in found.memory.scored] == [False, False, True]
    assert [s.error for s in found.memory.scored] == pytest.approx([11 / 12.5 - 1, 15 / 12.5 - 1, 20 / 18 - 1])


def test_the_largest_lines_of_the_fullest_phase() -> None:
    """What a worst row shows: lines on the GPU, alive at its peak, the largest first."""
    (scored,) = judged({}).memory.scored
    assert [e.item for e in scored.lines] == [Item.LOGITS, Item.WEIGHTS]


def test_decisions() -> None:
    """What happened against what was said; rows that were said wrongly are named."""
    said = {"a": True, "b": False, "c": True, "d": False}
    found = judged(
        *({"id": name, "outcome": "fits" if name in "ab" else "oom"} for name in said),
        predict=lambda row: predicted(fits=said[row.identity]),
    ).fit
    assert (found.true_fit, found.false_oom, found.false_fit, found.true_oom, found.scored) == (1, 1, 1, 1, 4)
    assert [(row.identity, name) for row, name in found.wrong] == [("b", "false_oom"), ("c", "false_fit")]


def test_what_is_open_or_was_not_observed_is_named() -> None:
    """A decision that the row leaves open, and an outcome that nobody saw, are counted with their reasons."""
    found = judged(
        {"id": "open"}, {"id": "claim", "outcome": "claimed-fits"}, {"id": "blank", "outcome": ""},
        predict=lambda row: predicted(fits=None),
    ).fit  # fmt: skip
    assert found.scored == 0
    assert [(row.identity, reason) for row, reason in found.unsupported] == [
        ("open", OPEN),
        ("claim", "outcome claimed-fits: neither fits nor oom was observed"),
    ]


def test_what_cannot_be_expressed_is_counted_and_named() -> None:
    """In memory, time and fit alike, with its reason."""

    def refuse(row: Measurement) -> Prediction:
        raise Unsupported("training method dance")

    found = judged({"tokens_per_s_per_gpu": "5"}, predict=refuse)
    for part in (found.memory, found.time, found.fit):
        assert [(row.identity, reason) for row, reason in part.unsupported] == [("run-1", "training method dance")]
    said = document(found)
    assert (said["memory"]["rows"], said["memory"]["scored"], said["memory"]["unsupported"]) == (1, 0, 1)
    assert said["memory"]["mape_percent"] is None
    assert "training method dance" in validation_text(said)


def test_time() -> None:
    """Tokens per second and GPU, in the band that was predicted; what is not modelled or not stated is named."""
    cells = {"tokens_per_s_per_gpu": "110"}
    (scored,) = judged(cells).time.scored
    assert scored.error == pytest.approx(100 / 110 - 1)
    assert scored.within
    assert (scored.low, scored.upper) == (90, 120)
    untimed = judged(cells, predict=lambda _: predicted(rate=None)).time
    assert [reason for _, reason in untimed.unsupported] == [UNTIMED]
    uncounted = judged({"step_time_s": "2", "grad_accum": ""}).time
    assert [reason for _, reason in uncounted.unsupported] == [UNCOUNTED]
    assert not judged({}).time.scored


def test_grades() -> None:
    """Only grades that were asked for are judged; a row without one always is; what is left out is counted."""
    table = table_of({"quality": "A"}, {"quality": "D"}, {"quality": ""}, {"quality": "B"})
    usual = validate(table, lambda _: predicted())
    assert (len(usual.memory.scored), usual.left_out) == (3, 1)
    only = validate(table, lambda _: predicted(), grades=("D",))
    assert [s.row.text("quality") for s in only.memory.scored] == ["D", ""]


def test_rows_without_a_measurement_are_named() -> None:
    """Neither peak nor time nor outcome: nothing to judge, and that is said."""
    found = judged({"id": "empty", "peak_mem_gib": "", "outcome": ""}, {})
    assert [row.identity for row in found.nothing_measured] == ["empty"]
    assert "1 row without anything measured: empty" in validation_text(document(found))


def test_groups() -> None:
    """By source, the most rows first; unsupported rows count for their group."""

    def predict(row: Measurement) -> Prediction:
        if row.text("source") == "c":
            raise Unsupported("no")
        return predicted()

    found = judged(*({"source": s} for s in "abbccc"), predict=predict).memory.by(lambda row: row.text("source"))
    assert [(name, len(g.scored), len(g.unsupported)) for name, g in found.items()] == [
        ("c", 0, 3),
        ("b", 2, 0),
        ("a", 1, 0),
    ]
