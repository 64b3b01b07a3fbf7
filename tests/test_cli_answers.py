"""What the commands that answer a reviewer print, whole: sensitivity, breakeven, afford."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from trainplan.cli.main import run_root

ANSWERS = Path(__file__).parent / "answers"
CASES = sorted(path.name for path in ANSWERS.iterdir())
WIDEST = 120


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """The whole answer is what it was, and no file is written; ``pytest --update-golden`` rewrites it."""
    monkeypatch.chdir(tmp_path)
    command = shlex.split((ANSWERS / case / "command.txt").read_text(encoding="utf-8"))
    assert run_root(command[1:]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    assert list(tmp_path.iterdir()) == []
    if update_golden:
        (ANSWERS / case / "answer.txt").write_text(out, encoding="utf-8")
    assert out == (ANSWERS / case / "answer.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_lines_fit(case: str) -> None:
    """No line but the decision is wider than a reader's window."""
    first, *lines = (ANSWERS / case / "answer.txt").read_text(encoding="utf-8").splitlines()
    assert first
    assert [line for line in lines if len(line) > WIDEST] == []


def test_an_unknown_price_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """Never free: the option that states it is named."""
    assert run_root(["breakeven", "--model", "SmolLM2-135M", "--gpus", "1xh100", "--tokens", "10M"]) == 0
    out = capsys.readouterr().out
    assert "buying    unknown: no price of a node of your own; give --capital, --years" in out
    assert "reserved  unknown: " in out


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["afford", "--gpus", "h100"], "--budget: "),
        (["afford", "--gpus", "h100", "--budget"], "--budget: "),
        (["afford", "--budget", "5", "--params", "13B"], "--layers: missing"),
        (["sensitivity", "--gpus", "h100"], "--model: missing"),
        (["breakeven", "--model", "8b", "--gpus", "h100", "--years", "-1"], "--years: "),
        (["breakeven", "--model", "8b", "--gpus", "h100", "--years", "nan"], "--years: "),
        (["breakeven", "--model", "8b", "--gpus", "h100", "--term", "soon"], "--term: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input(arguments: list[str], where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit 2."""
    assert run_root(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"trainplan: {where}")
    assert error.count("\n") == 1


def test_nothing_to_question(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the request itself has no plan: exit 3 and the way out."""
    assert run_root(["sensitivity", "--model", "70b", "--gpus", "l4", "--max-gpus", "1", "--deadline", "1h"]) == 3
    assert "no plan: " in capsys.readouterr().err
