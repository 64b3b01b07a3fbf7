"""Laws of judging measurements: layouts, checkpointing, tables and errors."""

from __future__ import annotations

import csv
import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.planner.errors import InputError
from trainplan.planner.ledger import Item
from trainplan.planner.measurements.score import Errors, Prediction, validate
from trainplan.planner.measurements.table import AMOUNTS, WHOLE, Measurement, Table, parse_table
from trainplan.planner.parallel import Split, micro_batches_in_flight, stage
from trainplan.strategies.measured import predict

from ..measured_rows import GOOD, attempt, csv_of, row_of, table_of
from ..tiny import llama

STATES = (Item.WEIGHTS, Item.FROZEN, Item.MASTER, Item.MOMENTS, Item.GRADIENTS, Item.STEP_TEMPORARIES)
frameworks = st.sampled_from(("torchtitan", "Megatron-LM", "Megatron-DeepSpeed", "swift", "litgpt", "axolotl", ""))
stages = st.sampled_from("0123")


def states(row: Measurement) -> int:
    """State bytes of one rank."""
    return predict(row).ledger.bytes_of(*STATES)


@settings(deadline=None)
@given(frameworks, stages, st.sampled_from(("full-ft", "lora")), st.integers(0, 6))
def test_more_ranks_never_hold_more(framework: str, zero: str, task: str, power: int) -> None:
    """Doubling the data-parallel ranks never makes one rank's states larger, and at stage 3 makes them smaller."""
    cells = {"framework": framework, "zero_stage": zero, "task": task}
    few, many = (states(row_of(**cells, n_gpus=str(2**p))) for p in (power, power + 1))
    assert many <= few
    assert (many < few) or zero != "3"


@settings(deadline=None)
@given(st.sampled_from((1, 2, 4, 8)), st.sampled_from((1, 2, 4)), st.booleans())
def test_the_shares_of_all_ranks_make_up_the_model(tensor: int, pipeline: int, tied: bool) -> None:
    """Together the ranks hold at least the model, and only norms, copied heads and a tied table more than once."""
    model = llama(tied=tied, heads=16)
    split = Split(tensor=tensor, pipeline=pipeline)
    held = tensor * sum(stage(model, split, i).parameter_count for i in range(pipeline))
    norms = (2 * model.layers + 1) * model.hidden * (tensor - 1)
    again = model.vocab * model.hidden if tied and pipeline > 1 else 0
    assert held == model.parameter_count + norms + again


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 512))
def test_micro_batches_in_flight(pipeline: int, virtual: int, micro_batches: int) -> None:
    """Never more than there are, never less than one, and no later stage holds more than an earlier one."""
    split = Split(pipeline=pipeline, virtual=virtual)
    found = [micro_batches_in_flight(split, i, micro_batches) for i in range(pipeline)]
    assert found == sorted(found, reverse=True)
    assert 1 <= found[-1] <= found[0] <= micro_batches


@settings(deadline=None, max_examples=40)
@given(frameworks, stages, st.integers(0, 31), st.integers(1, 4), st.sampled_from(("full-ft", "lora")))
def test_more_checkpointing_never_allocates_more(
    framework: str, zero: str, layers: int, micro_batch: int, task: str
) -> None:
    """One more layer that is recomputed leaves no more alive at the peak, but for the first one's input.

    Layer 0 keeps what its norm needs of the embedding's result; checkpointed, it keeps that result: e h T bytes, which
    show where the peak is at the end of the backward pass.
    """
    cells = {"framework": framework, "zero_stage": zero, "micro_batch": str(micro_batch), "task": task}
    fewer, more = (predict(row_of(**cells, act_ckpt=str(k))).memory.allocated_bytes for k in (layers, layers + 1))
    first = 2 * 4096 * 2048 * micro_batch
    assert more <= fewer + (first if layers == 0 else 0)


wholes = st.integers(1, 10**15)


def printed(number: int, style: int) -> str:
    """A whole number as people write it."""
    return (str(number), f"{number:,}", f"{number:_}", f"~{number} (about)", f"{number}.0")[style]


@given(st.dictionaries(st.sampled_from(sorted(set(WHOLE) - {"zero_stage"})), st.tuples(wholes, st.integers(0, 4))))
def test_a_table_reads_as_it_was_written(cells: dict[str, tuple[int, int]]) -> None:
    """Whatever way whole numbers are written, they are read as they are; printed back, they read the same again."""
    row = row_of(**{name: printed(*cell) for name, cell in cells.items()})
    assert {name: row.whole(name) for name in cells} == {name: number for name, (number, _) in cells.items()}
    again = row_of(**{**row.texts, **{name: repr(value) for name, value in row.numbers.items()}})
    assert (again.texts, again.numbers) == (row.texts, row.numbers)


@given(st.dictionaries(st.sampled_from(sorted(AMOUNTS)), st.floats(1e-6, 1e12)))
def test_amounts_keep_every_digit(cells: dict[str, float]) -> None:
    """An amount printed by Python is read to the last bit."""
    row = row_of(**{"mem_unit": "GiB"} | {name: repr(value) for name, value in cells.items()})
    assert {name: row.number(name) for name in cells} == cells


def read(data: bytes) -> Table | str:
    """The table, or why it is none."""
    try:
        return parse_table(data, where="t.csv")
    except InputError as error:
        return str(error)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_cell_gives_rows_or_problems(data: st.DataObject) -> None:
    """Any text in any cell is a row, a problem with the row's line, or one error; a row is predicted or refused."""
    column = data.draw(st.sampled_from(sorted(GOOD)))
    text = data.draw(st.text(max_size=30))
    table = read(csv_of({}, {column: text}))
    if isinstance(table, str):
        assert table.startswith("t.csv")
        return
    if text.startswith("#") and column == next(iter(GOOD)):
        return  # a line that begins so is a comment
    assert table.rows[0].identity == GOOD["id"]
    assert len(table.rows) == 2 or table.problems
    assert all(problem.startswith("t.csv:") for problem in table.problems)
    for row in table.rows[1:]:
        found = attempt(row)
        assert found if isinstance(found, str) else found.memory.allocated_bytes > 0


@given(st.binary(max_size=300))
def test_any_bytes_are_a_table_or_one_error(data: bytes) -> None:
    """Nothing but InputError leaves the reader."""
    with pytest.raises(InputError):
        parse_table(data, where="t.csv")


RUNS = tuple({"id": f"r{n}", "peak_mem_gib": str(5 + 3 * n), "source": "ab"[n % 2]} for n in range(8))


def figures(errors: Errors) -> list[float | None]:
    """All of a summary."""
    return [errors.mape_percent, errors.median_percent, errors.bias_percent, errors.within_band_percent]


@given(st.randoms(use_true_random=False))
def test_errors_do_not_depend_on_the_order_of_rows(shuffle: random.Random) -> None:
    """A shuffled table has the same errors, worst rows and decisions."""
    rows = list(RUNS)
    shuffle.shuffle(rows)
    known: dict[str, Prediction] = {"": predict(row_of())}
    one, other = (validate(table_of(*order), lambda _: known[""]) for order in (RUNS, tuple(rows)))
    assert figures(one.memory) == pytest.approx(figures(other.memory))
    assert [s.row.identity for s in one.memory.worst] == [s.row.identity for s in other.memory.worst]
    assert one.fit.scored == other.fit.scored


@given(st.lists(st.tuples(*(st.text("ab\"',\n#=", max_size=4),) * 2), min_size=1, max_size=5))
def test_quoted_cells_come_back(cells: list[tuple[str, str]]) -> None:
    """Commas, quotes, line breaks and # inside cells change nothing about their rows, nor their lines."""
    rows = [{"notes": a, "source": b, "id": f"r{n}"} for n, (a, b) in enumerate(cells)]
    data = csv_of(*rows)
    table = parse_table(data, where="t.csv")
    assert [row.identity for row in table.rows] == [row["id"] for row in rows]
    plain = [" ".join(row["notes"].split()) for row in rows]
    assert [" ".join(row.text("notes").split()) for row in table.rows] == plain
    reader = csv.reader(io.StringIO(data.decode()))
    begins = [1, *(reader.line_num + 1 for _ in reader)]
    assert [row.line for row in table.rows] == begins[1:-1]
