"""`trainplan trace`: what it prints, and how it refuses."""

from __future__ import annotations

import json

import pytest
from trainplan.cli.main import run_root

TINY = [
    "trace", "--params", "3M", "--layers", "2", "--hidden", "128", "--vocab", "1024", "--seq-len", "128",
]  # fmt: skip


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    """The peak first, then traced beside ledger, then what is alive."""
    assert run_root([*TINY, "--checkpointing", "full"]) == 0
    out = capsys.readouterr().out
    parts = out.split("\n\n")
    assert "peak" in parts[0]
    assert "2 layers checkpointed" in parts[0]
    assert parts[1].startswith("GiB")
    assert "activations, backward" in parts[1]
    assert parts[2].startswith("alive at the peak")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The document alone, whose groups add up to the peak."""
    assert run_root([*TINY, "--method", "lora", "--lora-targets", "q_proj", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "traced"
    assert document["subject"]["method"] == "lora"
    assert sum(group["bytes"] for group in document["alive"]) == document["peak"]["bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpointing", "full-offload"], "a trace has no host"),
        (["--method", "lora", "--lora-targets", "nothing"], "no nn.Linear of"),
        (["--checkpointing", "99"], "0 to 2"),
        (["--micro-steps", "3"], "--micro-steps"),
    ],
)
def test_refusals(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line and exit 2."""
    assert run_root([*TINY, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_interruption_is_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C inside the traced model: one line, exit 130."""
    import trainplan.planner.trace.run as run

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "step", interrupted)
    assert run_root(TINY) == 130
    assert capsys.readouterr().err.count("\n") == 1
