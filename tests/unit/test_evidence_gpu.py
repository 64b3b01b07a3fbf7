"""What `make evidence-gpu` measures, and how results become rows: everything but the GPU itself."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from trainplan.planner.units import GIB

from ..evidence import __main__ as command
from ..evidence.gpu_collect import COLUMNS, RunFailed, append, command_of, finished, measure, peaks_of, rows
from ..evidence.gpu_matrix import (
    ABOVE,
    ACCUMULATION,
    BELOW,
    Configuration,
    configuration,
    configurations,
    estimated,
    launch,
    own_model,
)

HOST_GIB = 512.0
TINY: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "vocab_size": 512,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
ENVIRONMENT = {"torch": "2.13.0", "deepspeed": "0.19.8", "transformers": "5.23.0", "driver": "570.1", "gpu": "NVIDIA X"}
FITS: Mapping[str, Any] = {
    "outcome": "fits",
    "environment": ENVIRONMENT,
    "step_s": [9.0, 2.0, 2.0, 3.0],
    "phases": {
        "start": {"allocated": 5 * GIB, "reserved": 6 * GIB, "device": 8 * GIB},
        "loss": {"allocated": 7 * GIB, "reserved": 9 * GIB, "device": 11 * GIB},
        "step": {"allocated": 6 * GIB, "reserved": 9 * GIB, "device": 11 * GIB},
    },
    "moments": {"before_bytes": GIB, "end_process_bytes": None},
}


@cache
def matrix() -> tuple[Configuration, ...]:
    """The matrix of one 80 GB card."""
    return configurations("h100", host_gib=HOST_GIB)


def tiny(**options: Any) -> Configuration:
    """Two layers, four optimizer steps of two micro-steps."""
    found = estimated(own_model(TINY, "tiny"), options, 64, 1, "h100", HOST_GIB)
    return configuration(found, "tiny", TINY, zone="small", gpu="h100")


def test_at_least_forty_configurations_from_0_1_to_8_billion_parameters() -> None:
    """Ids are unique, and the smallest and largest models are there."""
    assert len(matrix()) >= 40
    assert len({c.id for c in matrix()}) == len(matrix())
    sizes = [c.shape["params"] for c in matrix()]
    assert min(sizes) < 0.2e9
    assert max(sizes) > 8e9


def test_many_configurations_lie_near_out_of_memory_on_both_sides() -> None:
    """Each zone's predictions lie in it, spread over it and not on one point."""
    for zone in (BELOW, ABOVE):
        shares = [c.predicted.share for c in matrix() if c.zone == zone.name]
        assert len(shares) >= 10
        assert all(zone.least <= share <= zone.most for share in shares)
        assert max(shares) - min(shares) > (zone.most - zone.least) / 2


def test_every_class_of_strategy_is_measured() -> None:
    """Stages, offload, checkpointing of none, some and all layers, adapters, chunked loss, attention, optimizers."""
    seen = Counter(
        value
        for c in matrix()
        for value in (
            f"zero{c.zero_stage}",
            f"optimizer on {c.offload_optimizer}",
            f"parameters on {c.offload_parameters}",
            {0: "none", c.layers: "all"}.get(c.checkpointed_layers, "some"),
            c.method,
            "chunked" if c.loss_chunk else "whole",
            c.attention,
            c.optimizer,
            c.precision,
        )
    )
    wanted = {"zero0", "zero1", "zero2", "zero3", "optimizer on cpu", "parameters on cpu", "none", "some", "all"}
    wanted |= {
        "full",
        "lora",
        "qlora",
        "chunked",
        "eager",
        "sdpa",
        "adamw",
        "adamw-8bit",
        "lion",
        "sgd",
        "bf16",
        "fp16",
    }
    assert wanted <= set(seen)


def test_every_run_accumulates_and_steps_four_times() -> None:
    """Later micro-steps and steps after the first have peaks of their own."""
    assert {c.accumulation for c in matrix()} == {ACCUMULATION}
    assert all(c.steps >= 4 for c in matrix())
    assert all(c.ds_config["train_batch_size"] == ACCUMULATION * c.micro_batch for c in matrix())


def test_the_run_is_started_as_a_plan_starts_it() -> None:
    """The emitted command, with its allocator setting, by this environment's launcher."""
    variables, words = command_of(launch("a b/ds_config.json", "gpu_run.py"))
    assert variables == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert words[1].endswith("deepspeed")
    assert words[2:] == ["--num_gpus", "1", "gpu_run.py", "--deepspeed", "a b/ds_config.json"]


def test_one_row_for_each_kind_of_memory() -> None:
    """Peaks are the most over phases; the device's is less what others used; a kind not measured has no row."""
    assert peaks_of(FITS) == {"allocated": 7 * GIB, "reserved": 9 * GIB, "device": (11 - 1) * GIB}
    found = list(rows(tiny(zero=2), FITS, date="2026-11-25"))
    assert [row["id"] for row in found] == ["tiny:allocated", "tiny:reserved", "tiny:device"]
    assert [row["peak_mem_gib"] for row in found] == ["7.0000", "9.0000", "10.0000"]
    assert {row["outcome"] for row in found} == {"fits"}
    assert all(set(row) <= set(COLUMNS) for row in found)


def test_a_row_says_what_ran_how_fast_and_on_what() -> None:
    """Median of the steps after the first, versions, prediction."""
    row = next(rows(tiny(zero=2, checkpointing=1, method="lora", lora_rank=4), FITS, date="2026-11-25"))
    assert row["step_time_s"] == "2.0000"
    assert row["tokens_per_s_per_gpu"] == f"{64 * ACCUMULATION / 2:.1f}"
    assert (row["zero_stage"], row["act_ckpt"], row["task"], row["lora_targets"]) == (2, "1", "lora", "all-linear")
    assert "2026-11-25" in row["evidence"]
    assert "driver 570.1" in row["evidence"]
    assert json.loads(row["notes"])["predicted"]["capacity"] > 79 * GIB


def test_out_of_memory_is_a_result_and_a_timeout_is_none() -> None:
    """Out of memory has no peak but an outcome that is scored; a timeout decides nothing."""
    oom = {"outcome": "oom", "oom_phase": "loss", "environment": ENVIRONMENT, "phases": FITS["phases"], "moments": {}}
    (row,) = rows(tiny(zero=0), oom, date="2026-11-25")
    assert (row["outcome"], row["quality"]) == ("oom", "A")
    assert "peak_mem" not in row
    (row,) = rows(tiny(zero=0), {"outcome": "timeout", "message": "no result"}, date="2026-11-25")
    assert (row["outcome"], row["quality"], row["qa_flags"]) == ("", "D", "timeout")


def test_unknown_use_by_others_is_said() -> None:
    """Without the driver's figure from before, the device's row is marked."""
    unknown = {**FITS, "moments": {"before_bytes": None}}
    assert "unknown" in next(rows(tiny(zero=0), unknown, date="2026-11-25"))["qa_flags"]


def test_finished_configurations_are_skipped(tmp_path: Path) -> None:
    """A table names what it holds; rows are added under one header."""
    table = tmp_path / "deep" / "h100.csv"
    assert finished(table) == frozenset()
    first, second = tiny(zero=0), replace(tiny(zero=1), id="other")
    for each in (first, second):
        append(table, list(rows(each, FITS, date="2026-11-25")))
    assert finished(table) == {"tiny", "other"}
    with table.open(newline="") as file:
        assert [row["zero_stage"] for row in csv.DictReader(file)] == ["0"] * 3 + ["1"] * 3


def test_measure_all_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run without a result fails the command and is named; what ran is kept, and not run again."""
    ran: list[str] = []

    def fake(c: Configuration, *, timeout_s: float) -> dict[str, Any]:
        ran.append(c.id)
        if c.id == "bad":
            raise RunFailed("its output")
        return dict(FITS)

    monkeypatch.setattr(command, "measure", fake)
    wanted = [replace(tiny(zero=0), id=name) for name in ("bad", "good")]
    out = tmp_path / "t.csv"
    assert command.measure_all(wanted, out, "2026-11-25", 1.0) == 1
    assert command.measure_all(wanted, out, "2026-11-25", 1.0) == 1
    assert ran == ["bad", "good", "bad"]
    assert "failed: bad" in capsys.readouterr().out


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """And the exit status is not 0."""
    monkeypatch.setattr(command, "here", lambda: "")
    assert command.main([]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{command.NO_GPU}\n"
    assert len(command.NO_GPU.splitlines()) == 1


def test_an_unknown_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The catalog's words, and --gpu to say what it is."""
    monkeypatch.setattr(command, "here", lambda: "NVIDIA Unheard-of")
    assert command.main([]) == 2
    assert "--gpu" in capsys.readouterr().err


def test_the_list_needs_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Predicted memory by configuration; --only and --limit choose."""
    monkeypatch.setattr(command, "configurations", lambda gpu, host_gib: matrix())
    assert command.main(["--list", "--only", "*qlora*", "--limit", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 + 1
    assert all("qlora" in line for line in lines[1:4])


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    "options",
    [
        {"zero": 2, "checkpointing": 1, "method": "lora", "lora_rank": 4},
        {"zero": 3, "checkpointing": "full", "require": ("chunked-loss",)},
    ],
    ids=["lora-zero2", "chunked-zero3"],
)
def test_the_runner_trains_on_a_cpu(options: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Launcher, engine and steps are real; the plan's choices are obeyed; memory is unknown, not zero."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    planned = tiny(**options)
    result = measure(planned, timeout_s=300.0)
    assert result["outcome"] == "fits"
    assert len(result["step_s"]) == planned.steps
    assert result["checkpointed_layers"] == planned.checkpointed_layers
    assert result["trainable"] == planned.trainable
    assert set(result["phases"]) >= {"start", "forward", "loss", "backward", "later forward", "later backward", "step"}
    (row,) = rows(planned, result, date="2026-11-25")
    assert row["id"] == "tiny:outcome"
    assert "peak_mem" not in row
