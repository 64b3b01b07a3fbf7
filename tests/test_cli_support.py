"""What `trainplan support` prints."""

from __future__ import annotations

import json

import pytest
from trainplan.cli.main import run_root

WIDEST = 120


def test_the_matrix_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, a line per feature, the legend, and what is known of single versions; no line is too wide."""
    assert run_root(["support"]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    lines = [line.split() for line in out.splitlines()]
    assert ["qlora", "runs", "runs", "runs", "runs"] in lines
    assert ["offload-parameters-cpu", "refused", "refused", "refused", "runs"] in lines
    assert ["zenflow", "untried", "broken", "broken", "broken"] in lines
    assert "deepspeed >=0.19.7,<=0.19.8: zenflow with zero stage 1/2: " in out
    assert max(map(len, out.splitlines())) <= WIDEST


def test_the_matrix_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The same rows, with the sources of what is known of single versions."""
    assert run_root(["support", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"name": "lora", "zero-0": "runs", "zero-1": "runs", "zero-2": "runs", "zero-3": "runs"} in document[
        "matrix"
    ]
    assert all(row["source"] for row in (*document["known"], *document["changes"]))
    assert document["versions"]["deepspeed"] == "0.19.8"


def test_one_combination_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3, and for each row that refuses: why, who says so, what to use instead."""
    arguments = ["support", "zero-3", "qlora", "offload-optimizer-cpu", "--with", "bitsandbytes=0.42"]
    assert run_root(arguments) == 3
    out = capsys.readouterr().out
    assert "zero-3 qlora offload-optimizer-cpu: broken\n" in out
    for words in (
        "bitsandbytes <0.43",
        "source: release notes of peft 0.10.0",
        "instead: bitsandbytes 0.43.3 or later",
    ):
        assert words in out
    assert run_root([*arguments, "--json"]) == 3
    (document,) = json.loads(capsys.readouterr().out)["answers"]
    assert document["status"] == "broken"
    assert not document["legal"]
    assert document["refusals"][0]["versions"] == {"bitsandbytes": "<0.43"}


def test_one_combination_is_legal(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, with the test that runs it, or the parts that run."""
    assert run_root(["support", "zero-3", "qlora", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)["answers"]
    assert document["status"] == "runs"
    assert document["trials"][0]["proof"] == ["tests/integration/test_support.py::test_it_trains"]
    assert run_root(["support", "zero-2", "moe", "liger"]) == 0
    out = capsys.readouterr().out
    assert "zero-2 moe liger: untried" in out
    assert "part of it runs: moe, zero stage 2" in out


def test_without_a_stage_all_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    """One that is legal somewhere exits with 0, one that is legal nowhere with 3."""
    assert run_root(["support", "offload-parameters-cpu"]) == 0
    assert "zero-3 offload-parameters-cpu: runs" in capsys.readouterr().out
    assert run_root(["support", "mics"]) == 3
    assert capsys.readouterr().out.count(": broken") == 4


def test_installed_versions_are_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """--installed reads metadata; what is not installed is said, and --with goes before it."""
    monkeypatch.setattr("trainplan.planner.compatibility.installed", lambda: {"deepspeed": "0.18.0"})
    assert run_root(["support", "zero-2", "--installed"]) == 3
    out = capsys.readouterr().out
    assert out.startswith("deepspeed 0.18.0; without torch, transformers, accelerate, peft, bitsandbytes, datasets\n")
    assert run_root(["support", "zero-2", "--installed", "--with", "deepspeed=0.19.8"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zero-3", "qlra"], "did you mean qlora"),
        (["zero-2", "zero-3"], "zero-3: contradicts another name"),
        (["lora", "--with", "deepsped=1"], "--with: no package 'deepsped'"),
        (["lora", "--with", "peft=new"], "--with peft: not a version"),
        (["lora", "--with", "torch=2.9", "--with", "torch=2.8"], "--with torch: given twice, as 2.9 and 2.8"),
        (["--wiht", "peft=1"], "--wiht: no such option"),
    ],
)
def test_wrong_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, exit 2."""
    assert run_root(["support", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert words in error
    assert error.count("\n") == 1
