"""`trainplan verify` on real engines: plans that hold pass, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trainplan
from trainplan.api import verification
from trainplan.api.estimating import Estimate
from trainplan.cli.main import run_root
from trainplan.planner.architectures import build_model
from trainplan.planner.candidate import Candidate
from trainplan.planner.errors import EngineFailed
from trainplan.planner.ledger import Item
from trainplan.planner.plan import core_document
from trainplan.planner.verify.compare import off_rows
from trainplan.planner.verify.job import job_of
from trainplan.planner.verify.machine import Machine
from trainplan.planner.verify.outcome import LINE_OFF, measured_rows

pytestmark = pytest.mark.deepspeed

LLAMA: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "vocab_size": 301,
    "intermediate_size": 172,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "zero-1": {"zero": 1},
    "zero-2 checkpointing": {"zero": 2, "checkpointing": 2},
    "zero-3 offload LoRA": {"zero": 3, "offload_optimizer": "cpu", "method": "lora", "lora_rank": 4},
    "zero-3 QLoRA": {"zero": 3, "method": "qlora", "lora_rank": 4},
}
STATE_LINES = {
    "zero-1": {"trainable weights", "fp32 master weights", "optimizer states", "gradients"},
    "zero-2 checkpointing": {"trainable weights", "fp32 master weights", "optimizer states", "gradients"},
    "zero-3 offload LoRA": {"frozen weights", "trainable weights", "fp32 master weights", "optimizer states"},
    "zero-3 QLoRA": {"frozen weights", "NF4 scales", "gathered NF4 weights that autograd keeps"},
}
CPU = Machine(device="cpu", cores=2, free_ram_bytes=2**33)
STEPS = 3


def estimated(name: str) -> Estimate:
    """A plan's decision for 8 GPUs, of which two processes take over the part of two."""
    model = build_model(LLAMA, name="tiny", source="tests")
    return trainplan.estimate(
        model,
        gpus="8xa100-80",
        price=1.0,
        gpus_per_node=8,
        host_memory_gib=256,
        seq_len=2048,
        global_batch=64,
        micro_batch=2,
        **OPTIONS[name],
    )


def document_of(name: str) -> dict[str, Any]:
    """Its plan file, as read back."""
    found = estimated(name)
    document = {**core_document(found.candidate), "request": found.request.to_dict(), "stack": [], "warnings": []}
    return dict(json.loads(json.dumps(document)))


@cache
def engines(name: str) -> tuple[Candidate, list[dict[str, Any]]]:
    """What ran and what its ranks reported, once for all tests."""
    kept: list[tuple[Candidate, list[dict[str, Any]]]] = []
    original = verification.ran

    def watched(candidate: Candidate, machine: Machine, steps: int) -> list[dict[str, Any]]:
        kept.append((candidate, original(candidate, machine, steps)))
        return kept[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "ran", watched)
        trainplan.verify(document_of(name), device="cpu")
    return kept[-1]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_plan_that_holds_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes on a CPU: every state line to the byte, activations as traced, no tensor unexplained."""
    candidate, reports = engines(name)
    monkeypatch.setattr(verification, "ran", lambda *_: reports)
    found = trainplan.verify(document_of(name), device="cpu")
    assert found.passed, (found.off, found.disagreements, [row.text() for row in off_rows(found.rows)])
    assert found.candidate.gpus == candidate.gpus == 2
    assert found.ran.trainable == found.candidate.ledger.trainable.total
    lines = {row.line for row in found.rows}
    assert STATE_LINES[name] <= lines
    assert {"tensors of no line", "step, at its fullest", "start-up, at its fullest", "activations, forward"} <= lines
    states = [row for row in found.rows if row.section[:1] in "WOG" and row.section not in ("W5", "W7", "O3")]
    assert states
    assert all(row.exact for row in states)


@pytest.mark.parametrize("item", [Item.MASTER, Item.MOMENTS, Item.WEIGHTS, Item.GRADIENTS])
def test_a_line_that_is_off_is_named(item: Item) -> None:
    """A ledger with 8 bytes too few in one line: that line is off, the peaks that hold it too, and no other."""
    candidate, reports = engines("zero-1")
    entries = tuple(replace(e, bytes=e.bytes - 8) if e.item is item else e for e in candidate.ledger.entries)
    wrong = replace(candidate, ledger=replace(candidate.ledger, entries=entries))
    off = {row.line for row in off_rows(measured_rows(wrong, reports, STEPS, CPU))}
    assert item.label in off
    assert off <= {item.label, "step, at its fullest", "start-up, at its fullest"}


def test_an_engine_of_another_configuration_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan says stage 1, the engine cuts as stage 2: lines of gradients are off."""

    def other(c: Candidate, **options: Any) -> dict[str, Any]:
        job = job_of(c, **options)
        job["plan"]["ds_config"]["zero_optimization"]["stage"] = 2
        return job

    monkeypatch.setattr(verification, "job_of", other)
    found = trainplan.verify(document_of("zero-1"), device="cpu")
    assert not found.passed
    assert "gradients" in found.off


def test_an_engine_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's own words, on one line."""

    def broken(c: Candidate, **options: Any) -> dict[str, Any]:
        job = job_of(c, **options)
        job["plan"]["ds_config"]["zero_optimization"]["no_such_key"] = 1
        return job

    monkeypatch.setattr(verification, "job_of", broken)
    with pytest.raises(EngineFailed, match="no_such_key"):
        trainplan.verify(document_of("zero-1"), device="cpu", processes=1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A verdict first; 0 where it holds, 6 where it does not, and then the line."""
    _, reports = engines("zero-1")
    monkeypatch.setattr(verification, "ran", lambda *_: reports)
    document = document_of("zero-1")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    assert run_root(["verify", str(tmp_path), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("PASS: all ")
    assert "OFF" not in text
    assert "2 of 8 ranks" in text

    edited = next(e for e in document["memory"]["gpu"]["entries"] if e["section"] == "O1")
    edited["bytes"] += 8
    document["ds_config"]["zero_optimization"]["stage"] = 2
    path.write_text(json.dumps(document))
    assert run_root(["verify", str(path), "--device", "cpu"]) == LINE_OFF
    text = capsys.readouterr().out
    assert text.startswith("FAIL: ")
    assert "memory of the gpu: fp32 master weights (O1)" in text
    assert "ds_config: zero_optimization.stage: 2 in the file, the decision gives 1" in text

    assert run_root(["verify", str(path), "--device", "cpu", "--json"]) == LINE_OFF
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "failed"
    assert found["ran"]["processes"] == 2
    assert {"line", "planned_bytes", "measured_bytes", "holds"} <= set(found["rows"][0])
