"""What people read: the decision first, sums that add up, lines that fit, names that mean what they meant."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainplan.cli.main import run_root
from trainplan.planner.report.step_table import joined, step_text
from trainplan.planner.report.table import apportioned, table

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
FILES = ("plan.txt", "plan.json", "ds_config.json")
OWN = "Llama-3.1-8B"  # folder of a case's config.json
WIDEST = 120
SECONDS = re.compile(r"(?m)^(Solver.*), [0-9.]+ s$")  # the one figure that differs between runs


def printed(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """A golden case's command, run in a folder: its text and its files, less what varies."""
    if (GOLDEN / case / "config.json").exists():
        (folder / OWN).mkdir()
        shutil.copy(GOLDEN / case / "config.json", folder / OWN)
    command = shlex.split((GOLDEN / case / "command.txt").read_text(encoding="utf-8"))
    assert run_root(command[1:]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    (written,) = folder.glob("plans/*")
    document = json.loads((written / "plan.json").read_text(encoding="utf-8"))
    assert document["solver"].pop("seconds") >= 0
    return {
        "plan.txt": SECONDS.sub(r"\1", out),
        "plan.json": json.dumps(document, indent=2) + "\n",
        "ds_config.json": (written / "ds_config.json").read_text(encoding="utf-8"),
    }


@pytest.mark.parametrize("case", CASES)
def test_golden(
    case: str, update_golden: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole answer to a command is what it was; ``pytest --update-golden`` rewrites it."""
    monkeypatch.chdir(tmp_path)
    found = printed(case, tmp_path, capsys)
    if update_golden:
        for name, text in found.items():
            (GOLDEN / case / name).write_text(text, encoding="utf-8")
    for name in FILES:
        assert found[name] == (GOLDEN / case / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("case", CASES)
def test_the_decision_comes_first(case: str) -> None:
    """One line: model, method, GPUs, time, dollars, strategy."""
    text, plan = (GOLDEN / case / "plan.txt").read_text(), json.loads((GOLDEN / case / "plan.json").read_text())
    first, d = text.splitlines()[0], plan["decision"]
    assert first.startswith(f"{plan['model']['name']}, ")
    assert f" {d['gpus']} x {d['gpu']}, " in first
    assert "$" in first
    assert f"zero-{d['zero_stage']}" in first


@pytest.mark.parametrize("case", CASES)
def test_lines_fit(case: str) -> None:
    """No line is wider than a reader's window, but for the decision, which is one line, and the command to copy."""
    _, *lines = (GOLDEN / case / "plan.txt").read_text().splitlines()
    assert [line for line in lines if len(line) > WIDEST and "deepspeed --" not in line] == []


@pytest.mark.parametrize("case", CASES)
def test_sections(case: str) -> None:
    """Everything a reviewer asks for has its heading."""
    text = (GOLDEN / case / "plan.txt").read_text()
    headings = (
        "GPU memory of one GPU",
        "Host RAM of one node",
        "NVMe",
        "Step time",
        "Time and money",
        "Alternatives",
        "What days cost",
        "Assumptions",
        "What binds",
        "Solver",
        "Files written",
        "Start it",
    )
    starts = [f"\n\n{heading}" for heading in headings]
    assert [start for start in starts if start not in text] == []


def numbers(lines: list[str], column: slice) -> list[float]:
    """The figures of one column of a printed table; blank cells are nothing."""
    return [float(cell.replace(",", "")) for line in lines if (cell := line[column].strip())]


def test_printed_memory_adds_up() -> None:
    """The column of the fullest phase adds up to its total to the last digit."""
    for case in CASES:
        section = (GOLDEN / case / "plan.txt").read_text().split("\n\n")[1].splitlines()
        header, *lines, total = (line for line in section[1:] if "----" not in line)
        peak = json.loads((GOLDEN / case / "plan.json").read_text())["memory"]["gpu"]["fullest_phase"].replace("_", " ")
        end = header.index(f" {peak}") + 1 + len(peak)
        column = slice(end - max(len(peak), 6), end)
        assert sum(numbers(lines, column)) == pytest.approx(numbers([total], column)[0], abs=1e-6)


def terms(*rows: tuple[str, str, float, float]) -> dict[str, Any]:
    """A time document of terms: name, resource, busy and exposed seconds."""
    found = [
        {"name": name, "limited_by": by, "seconds_per_step": busy, "exposed_s": exposed, "source": ""}
        for name, by, busy, exposed in rows
    ]
    step_s = sum(r[3] for r in rows)
    band = {"step_s": step_s, "step_s_low": step_s / 2, "step_s_upper": step_s * 2}
    rests = {"measured": 0.75, "fitted": 0.249, "assumed": 0.001}
    return {"terms": found, **band, "rests_on": rests, "mfu": None, "tokens_per_s_per_gpu": 1.0, "steps": 1}


def test_terms_of_one_name_are_one_row() -> None:
    """Seconds are added, resources joined, the longest first; what hides adds nothing; what is nothing is no row."""
    time = terms(
        ("recompute", "memory", 2.0, 2.0),
        ("recompute", "matmul", 5.0, 5.0),
        ("gather", "network", 4.0, 0.0),
        ("none", "memory", 0.0, 0.0),
    )
    assert [(t.name, t.busy_s, t.exposed_s, t.limited_by) for t in joined(time["terms"])] == [
        ("recompute", 7.0, 7.0, ("matmul", "memory")),
        ("gather", 4.0, 0.0, ("network",)),
        ("none", 0.0, 0.0, ()),
    ]
    text = step_text(time)
    assert "none" not in text
    assert "MFU unknown" in text
    *_, total, band = text.splitlines()
    assert total.split() == ["one", "optimizer", "step", "7,000.0"]  # in ms below 10 s
    assert band == "  8 of 10 runs: 3,500.0 to 14,000.0 ms; rests on figures 75% measured, 25% fitted"


def test_table_aligns_by_content() -> None:
    """Columns of numbers go right, texts left; unknown counts as a number; a footer stands below a rule."""
    shown = table([("a", "1"), ("bb", "unknown")], header=("name", "n"), footer=("sum", "1"))
    assert shown.splitlines() == ["name        n", "a           1", "bb    unknown", "-------------", "sum         1"]


def test_apportioned_adds_up() -> None:
    """Rounded parts make the rounded whole, and no part is off by more than one unit."""
    parts = [0.4, 1.4, 2.4, 3.4, 0.0]
    whole = apportioned(parts, 1.0)
    assert sum(whole) == round(0.4 + 1.4 + 2.4 + 3.4)
    assert all(abs(a - b) < 1 for a, b in zip(parts, whole, strict=True))


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A planned job's folder, with a blank and a quote in its name."""
    folder = str(tmp_path_factory.mktemp("plan") / "it's $HOME")
    assert run_root(["--model", "SmolLM2-135M", "--gpus", "1xh100", "--tokens", "10M", "--out", folder]) == 0
    return folder


def test_the_launch_command_is_quoted(small_plan: str) -> None:
    """The command can be pasted whatever the folder is called."""
    plan = json.loads((Path(small_plan) / "plan.json").read_text())
    assert shlex.split(plan["launch"])[-1] == os.path.join(small_plan, "deepspeed.sh")


def test_explain_shows_the_stack(small_plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One strategy a row, from the baseline on, and the DeepSpeed keys each stands for."""
    assert run_root(["explain", small_plan]) == 0
    out = capsys.readouterr().out
    rows = [row["strategy"] for row in json.loads((Path(small_plan) / "plan.json").read_text())["stack"]]
    shown = [line for line in out.splitlines() if line.startswith(("baseline", "+ "))]
    assert len(shown) == len(rows)
    assert all(strategy in line for strategy, line in zip(rows, shown, strict=True))
    assert "bf16.enabled = True" in out


def test_explain_a_line(small_plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A line by name or section: bytes, arithmetic, phases, certainty; as JSON the same plan's numbers."""
    assert run_root(["explain", small_plan, "--line", "A5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("logits and loss (§A5, gpu): ")
    assert "arithmetic: " in out
    assert "alive in: loss" in out
    assert run_root(["explain", small_plan, "--line", "no such line"]) == 2
    assert "logits and loss" in capsys.readouterr().err


def test_why_not(small_plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A choice that breaks no limit is possible, and costs what it costs; one that cannot be is refused."""
    assert run_root(["why-not", small_plan, "--num-gpus", "8"]) == 0
    assert capsys.readouterr().out.startswith("possible: 8 x h100 ")
    assert run_root(["why-not", small_plan, "--num-gpus", "3"]) == 0
    assert capsys.readouterr().out.startswith("not possible: ")
    assert run_root(["why-not", small_plan]) == 2


def test_an_alias_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a short name was taken to mean stands in the report and in the document, not on stderr."""
    monkeypatch.chdir(tmp_path)
    assert run_root(["estimate", "--model", "8b", "--gpus", "8xh100"]) == 0
    out, error = capsys.readouterr()
    assert "8b means Llama-3.1-8B" in out
    assert error == ""


def test_your_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A config.json is named after its folder, wherever one stands."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 4096,
    }
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(folder)
    assert run_root(["models", "show", "config.json", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    per_layer = 4 * 256 * 256 + 3 * 256 * 512 + 2 * 256
    assert (shown["name"], shown["parameters"]) == ("my-model", 2 * 1000 * 256 + 2 * per_layer + 256)


def test_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A model by hand is planned at the default sequence length; 13B and 13e9 are the same."""
    monkeypatch.chdir(tmp_path)
    costs = []
    for params in ("13B", "13e9"):
        command = ["estimate", "--params", params, "--layers", "40", "--hidden", "5120", "--gpus", "8xh100", "--json"]
        assert run_root(command) == 0
        costs.append(json.loads(capsys.readouterr().out)["cost"]["usd"])
    assert costs[0] == costs[1]


def completed(words: str) -> list[str]:
    """What the shell offers for the last word."""
    parts = words.split(" ")
    environment = os.environ | {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
        "_TRAINPLAN_COMPLETE": "bash_complete",
    }
    program = "from trainplan.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("trainplan why", ["why-not"]),
        ("trainplan --glo", ["--global-batch"]),
        ("trainplan --model 70", ["70b"]),
        ("trainplan --gpus h200", ["h200", "h200-nvl"]),
        ("trainplan --gpus h100,h200", ["h100,h200", "h100,h200-nvl"]),
        ("trainplan --gpus 8xh200", ["8xh200", "8xh200-nvl"]),
        ("trainplan --require zero-", ["zero-0", "zero-1", "zero-2", "zero-3"]),
        ("trainplan --forbid checkpointing", ["checkpointing", "checkpointing-offload"]),
        ("trainplan --cloud az", ["azure"]),
        ("trainplan gpus show h200", ["h200", "h200-nvl"]),
        ("trainplan plan --method q", ["qlora"]),
    ],
)
def test_completion(words: str, offered: list[str]) -> None:
    """Tab completes commands, options and the names that options take."""
    assert completed(words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell gets a script that calls back."""
    assert run_root(["completion", shell]) == 0
    assert f"_TRAINPLAN_COMPLETE={shell}_complete" in capsys.readouterr().out
