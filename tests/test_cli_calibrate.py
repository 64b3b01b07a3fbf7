"""`trainplan calibrate`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import trainplan
from trainplan.cli.main import run_root
from trainplan.planner.calibrate.profile import read_profile
from trainplan.planner.units import GIB, MIB

DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parent / "calibrated"
PLAN = Path(__file__).parent / "golden" / "70b-budget" / "plan.json"
WIDEST = 120


def published(gpu: str, folder: Path, table: str = "throughput.csv", name: str = "rows.csv") -> str:
    """The rows of one GPU of a published table, as their source prints them."""
    comment, header, *lines = (DATA / table).read_text(encoding="utf-8").splitlines()
    assert comment.startswith("#")
    (folder / name).write_text("\n".join([header, *(line for line in lines if gpu in line)]) + "\n", encoding="utf-8")
    return name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command and returns what it prints."""

    def run(*arguments: str) -> str:
        code = run_root(["calibrate", *arguments])
        out, error = capsys.readouterr()
        assert (code, error) == (0, "")
        return out

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that runs the command and returns its one line on stderr."""

    def run(*arguments: str) -> str:
        assert run_root(["calibrate", *arguments]) == 2
        out, error = capsys.readouterr()
        assert out == ""
        assert error.count("\n") == 1
        return error

    return run


def test_golden(here: Path, says: Any, update_golden: bool) -> None:
    """The whole answer for eleven published rows, and the profile; ``pytest --update-golden`` rewrites them."""
    out = says(published("RTX4090", here))
    found = {"answer.txt": out, "4090.toml": (here / "profiles" / "4090.toml").read_text(encoding="utf-8")}
    for name, text in found.items():
        if update_golden:
            (GOLDEN / name).write_text(text, encoding="utf-8")
        assert text == (GOLDEN / name).read_text(encoding="utf-8")
    assert [line for line in out.splitlines() if len(line) > WIDEST] == []


@pytest.mark.parametrize("gpu", ["RTX4090", "RTX3090"])
def test_held_out_rows_are_planned_better(gpu: str, here: Path) -> None:
    """Every second published row fitted: the steps of the others are planned nearer than as shipped."""
    lines = (here / published(gpu, here)).read_text(encoding="utf-8").splitlines()
    (here / "fit.csv").write_text("\n".join([lines[0], *lines[1::2]]) + "\n", encoding="utf-8")
    (here / "held.csv").write_text("\n".join([lines[0], *lines[2::2]]) + "\n", encoding="utf-8")
    calibration = trainplan.calibrate("fit.csv").profile.calibration
    from trainplan.api.calibrating import _rows_of
    from trainplan.planner.calibrate.cases import Quantity
    from trainplan.planner.calibrate.outcome import error
    from trainplan.planner.calibration import AS_SHIPPED

    cases = [a.case for a in _rows_of(["held.csv"], good_rows=False) if a.case]
    assert len(cases) >= 5

    def mean(under: Any) -> float:
        step = Quantity.STEP
        return sum(abs(error(step, c.planned(under)[step], c.quantities[step])) for c in cases) / len(cases)

    assert mean(calibration) < 0.75 * mean(AS_SHIPPED)


def test_the_profile_serves_a_plan(here: Path, says: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The command that it prints, run: the plan names the file and its figures."""
    out = says(published("RTX4090", here))
    command = out.splitlines()[-1].split()
    assert command[:2] == ["trainplan", "plan"]
    arguments = [*command[1:-1], "llama-3-8b", "--method", "qlora", "--seq-len", "2048", "--price", "1"]
    assert run_root(arguments) == 0
    text = capsys.readouterr().out
    assert "4090.toml, 11 rows measured on 4090, 2026-11-25" in text
    assert "matrix multiplications" in text
    assert run_root(["why-not", "plans/llama-3-8b", "--micro-batch", "2"]) == 0
    assert run_root(["why-not", "plans/llama-3-8b", "--micro-batch", "2", "--profile", "profiles/none.toml"]) == 2


def test_json_is_the_document_alone(here: Path, says: Any) -> None:
    """Names are stable; nothing is written unasked, and with --out the profile is."""
    name = published("RTX4090", here)
    document = json.loads(says(name, "--json"))
    assert {
        "schema_version",
        "status",
        "gpu",
        "rows",
        "figures",
        "not_measured",
        "errors",
        "each",
        "refused",
        "profile",
    } == (set(document))
    assert document["profile"] is None
    assert sorted(p.name for p in here.iterdir()) == [name]
    assert json.loads(says(name, "--json", "--out", "p/x.toml"))["profile"] == "p/x.toml"
    assert read_profile("p/x.toml").gpu == "4090"


def test_a_profile_is_not_written_over(here: Path, says: Any, fails: Any) -> None:
    """A second run needs another name, or --force."""
    name = published("RTX4090", here)
    says(name)
    assert "is there already; choose another --out, or add --force" in fails(name)
    says(name, "--force")


# ------------------------------------------------------------------------------------------------- a plan's own run


def run_of(folder: Path, steps: int = 12, **job: Any) -> Path:
    """A plan's folder with a log of made-up steps that are 10 % slower than planned."""
    folder.mkdir()
    shutil.copy(PLAN, folder / "plan.json")
    plan = json.loads(PLAN.read_text(encoding="utf-8"))
    gpu = plan["memory"]["gpu"]
    head = {
        "event": "job", "schema_version": 1, "plan": "plan.json", "world_size": plan["decision"]["gpus"],
        "plan_sha256": hashlib.sha256(PLAN.read_bytes()).hexdigest(), "device": "cuda",
        "gpu": "NVIDIA A100-SXM4-80GB", "gpu_memory_bytes": 80 * GIB, "versions": {}, "resumed_step": 0,
    } | job  # fmt: skip
    peaks = {
        "allocated_bytes": gpu["allocated_bytes"],
        "reserved_bytes": int(1.1 * gpu["allocated_bytes"]),
        "device_bytes": int(1.1 * gpu["allocated_bytes"]) + int(1.3 * GIB),
    }
    slow = 1.1 * plan["time"]["step_s"]
    lines = [head, *({"event": "step", "step": n, "step_s": slow, **peaks} for n in range(1, steps + 1))]
    (folder / "measured.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_a_log_beside_its_plan(here: Path, says: Any) -> None:
    """Folder, plan.json and log name the same row; step, allocator and context move part of the way."""
    run_of(here / "x")
    documents = [json.loads(says(name, "--json")) for name in ("x", "x/plan.json", "x/measured.jsonl")]
    assert documents[0] == documents[1] == documents[2]
    (row,) = documents[0]["rows"]
    assert row["file"] == "measured.jsonl"
    assert row["note"].startswith("7 of 12 steps timed; the first 5 are warm-up")
    figures = {f["name"]: f for f in documents[0]["figures"]}
    assert 0.06 < figures["fragmentation"]["after"] < 0.1
    assert figures["context"]["after"] > figures["context"]["before"]
    assert figures["matmul"]["after"] < 1
    errors = {e["quantity"]: e for e in documents[0]["errors"]}
    assert errors["step time"]["after_percent"] < errors["step time"]["before_percent"] == pytest.approx(9.09, abs=0.01)
    assert errors["step time"]["left_out_percent"] is None


def test_a_snapshot_and_nvidia_smi_of_a_plan(here: Path, says: Any) -> None:
    """Without a log they are enough for memory; the fullest of the plan's cards counts, a display card does not."""
    folder = run_of(here / "x")
    (folder / "measured.jsonl").unlink()
    allocated = json.loads(PLAN.read_text())["memory"]["gpu"]["allocated_bytes"]
    reserved = allocated + 2 * GIB
    segment = {"total_size": reserved, "blocks": [{"size": allocated, "state": "active_allocated"}]}
    (here / "s.pickle").write_bytes(pickle.dumps({"segments": [segment], "device_traces": []}))
    used = (reserved + GIB) // MIB
    (here / "smi.csv").write_text(
        "index, name, memory.used [MiB], memory.total [MiB]\n"
        f"0, NVIDIA A100-SXM4-80GB, {used} MiB, 81920 MiB\n"
        "1, NVIDIA L4, 90000 MiB, 23034 MiB\n"
    )
    document = json.loads(says("x", "--snapshot", "s.pickle", "--nvidia-smi", "smi.csv", "--json"))
    (row,) = document["rows"]
    assert (row["allocated_bytes"], row["reserved_bytes"], row["device_bytes"]) == (allocated, reserved, used * MIB)
    assert row["step_s"] is None
    assert row["file"] == "s.pickle, smi.csv"
    assert {f["name"] for f in document["figures"]} >= {"fragmentation", "context"}
    assert not {f["name"] for f in document["figures"]} & {"matmul", "memory"}


FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "on the CPU": ({"device": "cpu", "gpu": None}, "it ran on cpu, which says nothing of a GPU"),
    "another GPU": (
        {"gpu": "NVIDIA H100 80GB HBM3"},
        "the log names NVIDIA H100 80GB HBM3 (h100), the plan is for a100-80",
    ),
    "an unknown GPU": ({"gpu": "Abacus 9000"}, "(not in the catalog)"),
    "another plan": ({"plan_sha256": "0" * 64}, "plan.json is not the one that it ran under"),
    "fewer ranks": ({"world_size": 1}, "1 ranks ran, the plan has"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_log_of_another_run_is_refused(case: str, here: Path, fails: Any) -> None:
    """Nothing is fitted, and the reason is said."""
    job, words = FOREIGN[case]
    run_of(here / "x", **job)
    assert words in fails("x")
    assert not (here / "profiles").exists()


def test_a_refused_row_is_shown_beside_the_others(here: Path, says: Any) -> None:
    """One good run and one on another GPU: the first is fitted, the second named."""
    run_of(here / "x")
    run_of(here / "y", gpu="NVIDIA H100 80GB HBM3")
    out = says("x", "y")
    assert "\n\nRefused\n  Llama" in out
    assert "(measured.jsonl), the row: the log names" in out


def test_rows_of_several_types_need_a_choice(here: Path, says: Any, fails: Any) -> None:
    """A profile is of one type; --gpu chooses, and what it leaves out is said."""
    name = published("fsdp_qlora", here)
    error = fails(name)
    assert "3090, 4090" in error
    assert "a profile is of one type; choose with --gpu NAME" in error
    document = json.loads(says(name, "--gpu", "4090", "--json"))
    assert document["gpu"] == "4090"
    assert any(r["reason"] == "a row of 3090" for r in document["refused"])
    assert "no row is of it" in fails(name, "--gpu", "b200")


BAD: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "SOURCES: missing"),
    "no such folder": (["none"], "cannot be read"),
    "no such table": (["none.csv"], "cannot be read"),
    "a snapshot without a plan": (["rows.csv", "--snapshot", "s"], "--snapshot: belongs to one plan, got 0"),
    "nvidia-smi of two plans": (["a", "b", "--nvidia-smi", "s"], "--nvidia-smi: belongs to one plan, got 2"),
    "no GPU of that name": (["rows.csv", "--gpu", "abacus"], "gpu: not in the catalog"),
    "no file's name": (["rows.csv", "--out", " "], "--out: not a file's name"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_input(case: str, here: Path, fails: Any) -> None:
    """One line, exit 2."""
    published("RTX4090", here)
    arguments, words = BAD[case]
    assert words in fails(*arguments)


def test_a_plan_without_a_log(here: Path, fails: Any) -> None:
    """It says which file is missing and what writes it."""
    (run_of(here / "x") / "measured.jsonl").unlink()
    assert "measured.jsonl: cannot be read" in fails("x")
