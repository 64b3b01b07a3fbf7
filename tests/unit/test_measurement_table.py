"""planner/measurements/table.py: every cell checked, every problem of a file at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainplan.planner.errors import InputError
from trainplan.planner.measurements import table
from trainplan.planner.measurements.table import MemoryKind, parse_table, read_table
from trainplan.planner.units import GIB

from ..measured_rows import GOOD, csv_of, row_of, table_of

HEADER = "id,model,seq_len,micro_batch,n_gpus,gpu,peak_mem_gib"
RUN = "a,llama-2-7b,2048,1,1,a100-80,20"


def parsed(*lines: str) -> table.Table:
    """A file of these lines below the usual header."""
    return parse_table("\n".join((HEADER, *lines)).encode(), where="t.csv")


def fails(data: bytes) -> str:
    """The one message of a file that cannot be read at all."""
    with pytest.raises(InputError) as raised:
        parse_table(data, where="t.csv")
    message = str(raised.value)
    assert message.startswith("t.csv") or "problems: t.csv" in message
    return message


def test_a_good_row() -> None:
    """Cells become texts and numbers; what is not stated is "" and 0."""
    row = row_of(seq_len=" 2048 ")
    assert (row.line, row.identity, row.whole("seq_len"), row.number("peak_mem_gib")) == (2, "run-1", 2048, 20.0)
    assert (row.text("optimizer"), row.whole("tp"), row.whole("tp", 1)) == ("", 0, 1)


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("micro_batch", "two", "micro_batch: not a number, got 'two'; allowed is a whole number above 0"),
        ("micro_batch", "-1", "not a number, got '-1'"),
        ("micro_batch", "0", "micro_batch: out of range, got '0'"),
        ("micro_batch", "1.5", "out of range, got '1.5'; allowed is a whole number"),
        ("seq_len", "8k", "not a number, got '8k'"),
        ("seq_len", "8 k", "another unit, got '8 k'"),
        ("seq_len", "1e17", "out of range"),
        ("seq_len", "1e400", "out of range"),
        ("seq_len", "1,30", "not a number"),
        ("peak_mem_gib", "12,5", "not a number, got '12,5'; allowed is a number above 0"),
        ("peak_mem_gib", "20GB", "not a number, got '20GB'"),
        ("peak_mem_gib", "20 GB", "another unit, got '20 GB'; allowed is a number above 0 in the column's own unit"),
        ("peak_mem_gib", "0", "out of range"),
        ("peak_mem_gib", "=1+1", "not a number, got '=1+1'"),
        ("step_time_s", "350 ms", "another unit"),
        ("zero_stage", "4", "zero_stage: got 4; allowed are 0 to 3"),
        ("id", "", "id: blank; give every row a name"),
    ],
)
def test_a_bad_cell(column: str, cell: str, words: str) -> None:
    """Each kind of bad cell is a problem that names line, column, what was given and what is allowed."""
    found = table_of({}, {column: cell})
    (problem,) = found.problems
    assert problem.startswith("t.csv:3: ")
    assert words in problem
    assert [row.identity for row in found.rows] == ["run-1"]


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("2048", 2048),
        ("2,048", 2048),
        ("1_304", 1304),
        ("2e3", 2000),
        ("2048.0", 2048),
        ("2048 default (ms-agent data)", 2048),
        ("~8055 (long-alpaca)", 8055),
        ("~ 8055(long-alpaca)", 8055),
    ],
)
def test_a_number_as_people_write_it(cell: str, number: int) -> None:
    """Thousands may be joined, a number may be rough, and words may follow it."""
    assert row_of(seq_len=cell).whole("seq_len") == number


def test_a_column_may_repeat_its_own_unit() -> None:
    """GiB in a column of GiB changes nothing; half a second needs no zero."""
    row = row_of(peak_mem_gib="20.5 GiB", gpu_mem_gb="80 GB", step_time_s=".5")
    assert [row.number(name) for name in ("peak_mem_gib", "gpu_mem_gb", "step_time_s")] == [20.5, 80, 0.5]


@pytest.mark.parametrize("cell", ["unknown", "N/A", "nan", "-", "none"])
def test_not_stated_in_words(cell: str) -> None:
    """A number that says it is not known is a blank."""
    found = row_of(grad_accum=cell)
    assert found.whole("grad_accum") == 0


def test_all_problems_at_once() -> None:
    """Every problem of every row, each with the line that its row begins at; the other rows are good."""
    found = parsed(
        "# a comment",
        "a,llama-2-7b,2048,two,none given,a100-80,20",
        "",
        '"b\nover two lines",llama-2-7b,2048,1,0,a100-80,20',
        "c,llama-2-7b,2048,1",
        ",,,,,,",
        RUN,
    )
    assert [problem.split(": ")[:2] for problem in found.problems] == [
        ["t.csv:3", "micro_batch"],
        ["t.csv:3", "n_gpus"],
        ["t.csv:5", "n_gpus"],
        ["t.csv:7", "4 cells, the header has 7; quote cells that hold commas"],
    ]
    assert [(row.identity, row.line) for row in found.rows] == [("a", 9)]


def test_comments_stand_anywhere_but_in_cells() -> None:
    """A line with # begins no row; inside a quoted cell it is text; a comment's quotes mean nothing."""
    found = parse_table(f'# "x\n{HEADER}\n# y\n{RUN}\n"b\n#c",m,1,1,1,g,1\n# z'.encode(), where="t.csv")
    assert [(row.identity, row.line) for row in found.rows] == [("a", 4), ("b #c", 5)]


def test_spreadsheets() -> None:
    """A byte-order mark, carriage returns, quoted commas, empty columns and empty rows are nothing to complain of."""
    text = f'{HEADER},notes,,\r\n{RUN},"one, two",,\r\n,,,,,,,,,\r\n'
    found = parse_table(b"\xef\xbb\xbf" + text.encode(), where="t.csv")
    assert (found.problems, found.unread) == ((), ())
    assert [row.text("notes") for row in found.rows] == ["one, two"]
    assert len(parse_table(f"{HEADER}\r{RUN}\r".encode(), where="t.csv").rows) == 1


def test_columns_missing() -> None:
    """All that miss are named, the nearest name is offered, and what is wrong in the rows comes with them."""
    message = fails(b"id,model,seqlen,micro_batch,n_gpus,outcome\na,m,2048,two,1,fits\n")
    assert "t.csv: columns missing: seq_len, gpu; did you mean seqlen?" in message
    assert "t.csv:2: micro_batch: not a number, got 'two'" in message


def test_nothing_measured() -> None:
    """A table in which no column holds a result is refused, and the columns that would are named."""
    message = fails(b"id,model,seq_len,micro_batch,n_gpus,gpu\na,m,1,1,1,g\n")
    assert (
        "nothing measured: none of peak_mem_gib, peak_mem, tokens_per_s_per_gpu, tflops_per_gpu, step_time_s" in message
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "t.csv: empty"),
        (b"\n\n# only a comment\n,,\n", "t.csv: empty"),
        (HEADER.encode(), "t.csv: no rows"),
        (HEADER.encode("utf-16"), "t.csv: not UTF-8"),
        (f"{HEADER},gpu\n{RUN},x".encode(), "columns twice: gpu"),
        (HEADER.replace(",", ";").encode() + b"\na;b", "one column, 'id;model;seq_len;"),
        (f'{HEADER}\n{RUN}\n"b,llama-2-7b\n{RUN}'.encode(), "t.csv:3: not CSV: unexpected end of data"),
        (f'{HEADER}\n"a"b,m'.encode(), "t.csv:2: not CSV"),
    ],
)
def test_no_table_at_all(data: bytes, words: str) -> None:
    """What cannot be read as a table is one message."""
    assert words in fails(data)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes, rows and columns are bounded."""
    path = tmp_path / "t.csv"
    path.write_bytes(csv_of({}, {}))
    for name, least, words in (
        ("LARGEST_FILE_BYTES", 100, "larger than 100 bytes"),
        ("MOST_ROWS", 1, "more than 1 rows"),
        ("MOST_COLUMNS", 5, f"{len(GOOD)} columns; allowed are 5"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(table, name, least)
            with pytest.raises(InputError, match=words):
                read_table(path)
    assert len(read_table(path).rows) == 2


def test_no_file(tmp_path: Path) -> None:
    """A file that is not there, a folder, a name that cannot be one."""
    for path, words in ((tmp_path / "no.csv", "cannot be read: No such file"), (tmp_path, "not a file")):
        with pytest.raises(InputError, match=words):
            read_table(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_table(Path("a\0b"))


def test_columns_not_read_are_named() -> None:
    """A column that means nothing to us, perhaps a misspelt one, is not passed over in silence."""
    assert table_of({"source_ref": "x", "zero_stge": "3"}).unread == ("source_ref", "zero_stge")


def test_cells_can_be_printed() -> None:
    """Control characters and line breaks do not reach a terminal; a long cell is cut."""
    row = row_of(id="a\x1b[31m\0b", notes="x" * 5000)
    assert row.identity == "a?[31m?b"
    assert len(row.text("notes")) == table.LONGEST_CELL


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ({"peak_mem_gib": "2"}, 2 * GIB),
        ({"peak_mem_gib": "", "peak_mem": "2", "mem_unit": "GiB"}, 2 * GIB),
        ({"peak_mem_gib": "", "peak_mem": "2", "mem_unit": "GB (1e9)"}, 2e9),
        ({"peak_mem_gib": "", "peak_mem": "2048", "mem_unit": "MiB"}, 2 * GIB),
        ({"peak_mem_gib": "", "peak_mem": "70833405952", "mem_unit": "bytes"}, 70833405952),
        ({"peak_mem_gib": "1", "peak_mem": "9", "mem_unit": "furlongs"}, GIB),
        ({"peak_mem_gib": "", "mem_unit": "none"}, 0),
    ],
)
def test_peak(cells: dict[str, str], size: float) -> None:
    """peak_mem_gib as it is, else peak_mem in mem_unit."""
    assert row_of(**cells).peak_bytes == size


@pytest.mark.parametrize("unit", ["", "furlongs"])
def test_an_amount_needs_its_unit(unit: str) -> None:
    """peak_mem alone is no amount."""
    (problem,) = table_of({"peak_mem_gib": "", "peak_mem": "2", "mem_unit": unit}).problems
    assert "mem_unit: not a unit, got" in problem


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("", MemoryKind.ALLOCATED),
        ("max allocated, max over ranks", MemoryKind.ALLOCATED),
        ("max_memory_allocated per GPU", MemoryKind.ALLOCATED),
        ("max reserved", MemoryKind.RESERVED),
        ("nvidia-smi", MemoryKind.DEVICE),
        ("per GPU", MemoryKind.DEVICE),
    ],
)
def test_memory_kind(words: str, kind: MemoryKind) -> None:
    """Which of the three memories, from the words; what says nothing is what torch allocated."""
    assert row_of(mem_kind=words).memory_kind is kind


def test_replicas_and_micro_steps() -> None:
    """Data-parallel ranks and accumulation as stated, else what GPUs and global batch leave."""
    assert row_of(n_gpus="32", tp="2", pp="4").replicas == 32 // (2 * 4)
    assert row_of(n_gpus="32", tp="2", pp="4", dp="2").replicas == 2
    assert row_of(n_gpus="2", sharding="HF device_map").replicas == 1
    assert row_of(grad_accum="", n_gpus="8", micro_batch="2", global_batch="64").micro_steps == 64 // (2 * 8)
    assert row_of(grad_accum="3", n_gpus="8", micro_batch="2", global_batch="64").micro_steps == 3
    assert row_of(grad_accum="").micro_steps == 1


def test_throughput_from_the_time_of_a_step() -> None:
    """sequences x tokens / seconds / GPUs where only the step is timed; nothing where its sequences are not known."""
    timed = row_of(step_time_s="2", seq_len="4096", grad_accum="4", micro_batch="1", n_gpus="8")
    assert timed.tokens_per_s_per_gpu == 4 * 1 * 8 * 4096 / 2 / 8
    assert row_of(step_time_s="2", global_batch="64").tokens_per_s_per_gpu == 64 * 2048 / 2 / 8
    unknown = row_of(step_time_s="2", grad_accum="")
    assert (unknown.is_timed, unknown.tokens_per_s_per_gpu) == (True, 0)
    assert row_of(tokens_per_s_per_gpu="123", step_time_s="2").tokens_per_s_per_gpu == 123
