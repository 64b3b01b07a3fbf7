"""What starts a plan, file by file, for three plans and every target; and what the command prints and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from trainplan.api.emitting import emit
from trainplan.cli.main import run_root
from trainplan.planner.emit.start import Start
from trainplan.planner.emit.targets import TARGETS
from trainplan.planner.planfile import read_plan

GOLDEN = Path(__file__).parent / "golden"
# One node with parameters offloaded and some layers recomputed; several nodes; quantised on one GPU.
PLANS = ("70b-cheapest", "70b-full-nodes", "8b-qlora")
COPIED = ("train.py", "hf_trainer.py", "plan.json", "ds_config.json")  # not of a target: as they stand


def emitted(case: str, target: str) -> dict[str, str]:
    """Files of a target beside what is copied, and its command with what goes before and what is not expressed."""
    launch = emit(read_plan(str(GOLDEN / case)), Start(folder="plans/x"), (target,))
    found = launch.targets[target]
    said = [found.command, *(f"first: {t}" for t in found.first), *(f"not expressed: {t}" for t in found.cannot)]
    files = {name: text for name, text in launch.files.items() if name not in COPIED}
    return {**files, "start.txt": "\n".join(said) + "\n"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", PLANS)
def test_golden_files(case: str, target: str, update_golden: bool) -> None:
    """Every file is what it was; ``pytest --update-golden`` rewrites them."""
    folder, found = GOLDEN / case / target, emitted(case, target)
    if update_golden:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, text in found.items():
            (folder / name).write_text(text, encoding="utf-8")
    assert found == {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A folder with a golden plan, as if trainplan had just written it there."""
    folder = tmp_path / "plan"
    folder.mkdir()
    shutil.copy(GOLDEN / "8b-qlora" / "plan.json", folder)
    return folder


def test_emit_writes_and_says(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files, the exact command, what comes first, what is not expressed; twice is the same as once."""
    for _ in range(2):
        assert run_root(["emit", str(plan), "--for", "slurm", "--for", "axolotl", "--data", "d", "--model", "m"]) == 0
        out, error = capsys.readouterr()
        assert error == ""
        assert f"  {plan}/job.sbatch\n" in out
        assert f"Start it with Slurm\n  cd -- {plan} && sbatch job.sbatch\n  first: " in out
        assert "  not expressed: packing with SDPA" in out
    assert {"ds_config.json", "job.sbatch", "axolotl.yaml", "axolotl.sh"} < {path.name for path in plan.iterdir()}
    assert (plan / "plan.json").read_bytes() == (GOLDEN / "8b-qlora" / "plan.json").read_bytes()


def test_another_folder_gets_the_whole_job(plan: Path, tmp_path: Path) -> None:
    """--out writes the plan there too, so that the folder can be carried to a cluster."""
    other = tmp_path / "other"
    assert run_root(["emit", str(plan / "plan.json"), "--out", str(other)]) == 0
    ours, theirs = (json.loads((folder / "plan.json").read_text()) for folder in (plan, other))
    assert theirs.pop("launch") != ours.pop("launch")
    assert ours == theirs
    assert (other / "deepspeed.sh").exists()


def test_local_paths_become_absolute(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts run in the job's folder: data that lies here is named by its place; other names are left alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("x")
    assert run_root(["emit", str(plan), "--data", "text.txt", "--model", "org/model"]) == 0
    script = (plan / "deepspeed.sh").read_text()
    assert f"--data={tmp_path}/text.txt" in script
    assert "--model=org/model" in script


def edited(plan: Path, change: dict[str, Any]) -> None:
    """Change a plan by hand."""
    document = json.loads((plan / "plan.json").read_text())
    (plan / "plan.json").write_text(json.dumps({**document, **change}))


def test_a_changed_plan_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that somebody changed is used, with a note, where its parts do not contradict each other; it stays."""
    folder = tmp_path / "mine"
    shutil.copytree(GOLDEN / "8b-qlora", tmp_path / "source")
    assert run_root(["emit", str(tmp_path / "source"), "--out", str(folder)]) == 0
    edited(folder, {"my notes": "x"})
    changed = (folder / "plan.json").read_bytes()
    capsys.readouterr()
    assert run_root(["emit", str(folder), "--for", "torchrun"]) == 0
    out = capsys.readouterr().out
    assert f"note: {folder}/plan.json: changed since trainplan wrote it" in out
    assert f"note: {folder}/plan.json: ignored, not trainplan's: my notes" in out
    assert (folder / "plan.json").read_bytes() == changed


def test_what_the_script_would_refuse_is_not_emitted(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A promise of another type than the script reads: its own words, exit 2, and nothing is written."""
    memory = json.loads((plan / "plan.json").read_text())["memory"]
    edited(plan, {"memory": {**memory, "gpu": {**memory["gpu"], "allocated_bytes": "much"}}})
    before = sorted(path.name for path in plan.iterdir())
    assert run_root(["emit", str(plan), "--for", "torchrun"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"trainplan: {plan / 'plan.json'}: memory.gpu.allocated_bytes: must be int or float, got")
    assert sorted(path.name for path in plan.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "slrum"], "--for: no target 'slrum'; allowed are deepspeed, "),
        (["--data", "a\nb"], "--data: not a path or dataset, got 'a\\nb'"),
        (["--model", " "], "--model: not a path or hub id"),
        (["--out", ""], "--out: not a folder's name"),
    ],
)
def test_wrong_input_is_one_line(
    plan: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, and nothing is written."""
    assert run_root(["emit", str(plan), *arguments]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert message in error
    assert [path.name for path in plan.iterdir()] == ["plan.json"]


def test_parts_that_disagree_are_refused(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ds_config that somebody gave another key."""
    document = json.loads((plan / "plan.json").read_text())
    document["ds_config"]["zero_optimisation"] = {"stage": 3}
    edited(plan, document)
    assert run_root(["emit", str(plan)]) == 2
    assert "ds_config.zero_optimisation is no key that trainplan writes" in capsys.readouterr().err


def test_foreign_files_stay(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script of somebody else's is not written over."""
    (plan / "torchrun.sh").write_text("mine")
    assert run_root(["emit", str(plan), "--for", "torchrun"]) == 2
    assert "trainplan did not write it" in capsys.readouterr().err
    assert (plan / "torchrun.sh").read_text() == "mine"
    assert not (plan / "ds_config.json").exists()
