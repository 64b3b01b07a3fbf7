"""`trainplan validate`: its document, its errors, and what it does with tables that are no tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trainplan
from trainplan.cli.main import run_root
from trainplan.planner.errors import InputError

from .measured_rows import csv_of

ERRORS = {
    *("rows", "scored", "unsupported", "mape_percent", "median_percent", "bias_percent", "within_band_percent"),
    *("by_source", "by_gpu", "by_strategy", "worst", "unit", "unsupported_rows"),
}
FIT = {
    *("rows", "scored", "unsupported", "true_fit", "false_fit", "true_oom", "false_oom"),
    *("wrong_rows", "unsupported_rows"),
}
HEADER = b"id,model,seq_len,micro_batch,n_gpus,gpu,peak_mem_gib\n"
RUN = b"a,llama-2-7b,2048,1,1,a100-80,20\n"
QUICK_S = 5.0  # measured: under 0.5 s; a machine that others use too may be slower


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that writes t.csv into an empty folder."""
    monkeypatch.chdir(tmp_path)

    def write(data: bytes) -> Path:
        path = tmp_path / "t.csv"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command and returns what it prints."""

    def run(*arguments: str) -> str:
        code = run_root(["validate", *arguments])
        out, error = capsys.readouterr()
        assert (code, error) == (0, "")
        return out

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command and returns its one line on stderr."""

    def run(*arguments: str) -> str:
        code = run_root(["validate", *arguments])
        out, error = capsys.readouterr()
        assert (code, out) == (2, "")
        assert error.startswith("trainplan: ")
        assert error.count("\n") == 1
        assert error.rstrip("\n").isprintable()
        return error.removeprefix("trainplan: ").rstrip("\n")

    return run


ROWS = (
    {"id": "ran", "tokens_per_s_per_gpu": "3000"},
    {"id": "oom", "micro_batch": "64", "act_ckpt": "none", "outcome": "oom", "peak_mem_gib": ""},
    {"id": "dance", "task": "dance", "quality": "B"},
    {"id": "left", "quality": "D"},
)


def test_the_document(table: Any, says: Any) -> None:
    """--json: memory and time with their errors, fit with its four counts, every row accounted for."""
    table(csv_of(*ROWS))
    found = json.loads(says("t.csv", "--json"))
    assert (found["schema_version"], found["status"], found["file"]) == (1, "validated", "t.csv")
    assert set(found["memory"]) == set(found["time"]) == ERRORS
    assert set(found["fit"]) == FIT
    assert (found["memory"]["rows"], found["memory"]["scored"], found["memory"]["unsupported"]) == (2, 1, 1)
    assert (found["time"]["rows"], found["time"]["scored"]) == (1, 1)
    fit = found["fit"]
    assert [fit[name] for name in ("rows", "scored", "true_fit", "false_fit", "true_oom", "false_oom")] == [
        *(3, 2, 1, 0, 1, 0)
    ]
    assert found["left_out_by_grade"] == 1
    assert fit["unsupported_rows"] == [{"id": "dance", "line": 4, "reason": "training method dance"}]
    (group,) = found["memory"]["by_source"].values()
    assert set(group) == ERRORS - {"by_source", "by_gpu", "by_strategy", "worst", "unit", "unsupported_rows"}
    (worst,) = found["memory"]["worst"]
    assert set(worst) == {"id", "line", "measured", "predicted", "low", "upper", "error_percent", "largest_lines"}
    assert set(worst["largest_lines"][0]) == {"item", "section", "bytes"}


def test_python_gives_the_same(table: Any, says: Any) -> None:
    """`trainplan.validate` returns the document that --json prints."""
    table(csv_of(*ROWS))
    assert trainplan.validate("t.csv") == json.loads(says("t.csv", "--json"))
    with pytest.raises(InputError, match="cannot be read"):
        trainplan.validate("nowhere.csv")


def test_the_report(table: Any, says: Any) -> None:
    """For people: errors by source, GPU and strategy, worst rows with their largest lines, decisions, what is left."""
    table(csv_of(*ROWS))
    text = says("t.csv")
    for part in (
        "t.csv\n  1 row left out: their grade was not asked for",
        "Memory: predicted against measured peak",
        "Time: predicted against measured tokens/s per GPU",
        "worst rows",
        "Does it fit",
        "training method dance",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 200


def test_grades(table: Any, says: Any) -> None:
    """--grades names the grades that are judged; where none is left, that is said."""
    table(csv_of({"quality": "A"}, {"quality": "D"}))
    assert json.loads(says("t.csv", "--json", "--grades", "A, D"))["memory"]["scored"] == 2
    assert "no row is left to judge" in says("t.csv", "--grades", "X")


BAD = csv_of({"micro_batch": "two"}, {}, {"peak_mem_gib": "20 GB", "seq_len": "8k"}, {"id": ""})


def test_all_problems_with_their_lines(table: Any, fails: Any) -> None:
    """Exit code 2, and one line with everything that is wrong."""
    table(BAD)
    error = fails("t.csv")
    assert "4 problems" in error
    for place in ("t.csv:2: micro_batch", "t.csv:4: peak_mem_gib", "t.csv:4: seq_len", "t.csv:5: id: blank"):
        assert place in error
    assert "--good-rows" in error


def test_good_rows_when_asked(table: Any, says: Any) -> None:
    """--good-rows judges the others, and still lists what is wrong."""
    table(BAD)
    found = json.loads(says("t.csv", "--json", "--good-rows"))
    assert found["memory"]["rows"] == 1
    assert [problem.split(": ")[0] for problem in found["problems"]] == ["t.csv:2", "t.csv:4", "t.csv:4", "t.csv:5"]
    text = says("t.csv", "--good-rows")
    assert "4 problems, their rows are not judged" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.csv", "nowhere.csv: cannot be read: No such file or directory"),
        ("", ".: not a file"),
        ("/dev/zero", "/dev/zero: not a file"),
        ("a" * 5000, "cannot be read: File name too long"),
    ],
)
def test_no_file(name: str, words: str, table: Any, fails: Any) -> None:
    """What is not there, or no file, is one line."""
    assert words in fails(name)


def test_a_pipe_is_not_waited_for(tmp_path: Path, fails: Any) -> None:
    """Nobody may ever write into it."""
    os.mkfifo(tmp_path / "pipe")
    assert "not a file" in fails(str(tmp_path / "pipe"))


def hostile() -> dict[str, bytes]:
    """Files that are no tables."""
    return {
        "a cell of 5 MB": HEADER + b"a,llama-2-7b,2048,1,1,a100-80," + b"9" * 5_000_000,
        "quotes": HEADER + b'"' * 1_000_001,
        "a quote that never ends": HEADER + b'"' + RUN * 10,
        "a million columns": ",".join(f"c{i}" for i in range(10**6)).encode() + b"\n1\n",
        "a million commas": HEADER + b"," * 10**6 + b"1",
        "zeros": b"\0" * 2_000_000,
        "random": bytes(range(256)) * 1000,
        "formulas": HEADER + b"=cmd|'/C calc'!A0,llama-2-7b,=1+1,1,1,a100-80,=2+2\n",
        "NUL": HEADER + b"\0a,llama-2-7b,2048,1,1,a100-80\0,2\x000\n",
        "digits": HEADER + b"a,llama-2-7b," + b"9" * 50_000 + b",1,1,a100-80,20\n",
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_files(name: str, table: Any, fails: Any) -> None:
    """One line, quickly."""
    table(hostile()[name])
    began = time.perf_counter()
    assert len(fails("t.csv")) < 2100
    assert time.perf_counter() - began < QUICK_S


@pytest.mark.parametrize("cell", [b"=HYPERLINK(0)", b"\x1b[2J\x07", b"\0", "\u202e\u200b".encode(), b"x" * 100_000])
def test_hostile_names(cell: bytes, table: Any, says: Any) -> None:
    """Names of runs, sources and GPUs reach the terminal as printable text only."""
    table(HEADER.replace(b"id", b"source,id") + cell + b"," + cell + b",llama-2-7b,2048,1,1,a100-80,20\n")
    text = says("t.csv")
    assert all(character.isprintable() or character == "\n" for character in text)
    assert max(map(len, text.splitlines())) < 250


def test_many_rows_in_many_groups(table: Any, says: Any) -> None:
    """Rows that are all alike cost little, though each has a source of its own."""
    table(csv_of(*({"id": f"r{n}", "source": f"s{n}", "task": "dance"} for n in range(5_000))))
    began = time.perf_counter()
    assert json.loads(says("t.csv", "--json"))["memory"]["unsupported"] == 5_000
    assert time.perf_counter() - began < 3 * QUICK_S


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "trainplan", "validate", *arguments], stderr=subprocess.PIPE, text=True, **options
    )


def test_a_reader_that_left_is_none(table: Any) -> None:
    """``trainplan validate ... | head -1`` ends in silence."""
    path = table(csv_of(*ROWS))
    reader, writer = os.pipe()
    os.close(reader)
    running = process(str(path), stdout=writer)
    os.close(writer)
    _, error = running.communicate(timeout=60)
    assert (running.returncode, error) == (0, "")


def test_interrupted(table: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while rows are judged is one line and exit code 130."""

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    table(csv_of(*ROWS))
    monkeypatch.setattr("trainplan.strategies.measured.predict", interrupt)
    assert run_root(["validate", "t.csv"]) == 130
    assert capsys.readouterr().err.strip() == "trainplan: interrupted; nothing was left half-written; start again"
