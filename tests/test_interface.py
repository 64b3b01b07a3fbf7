"""What others build on does not change by accident: exports, commands, options, exit codes, JSON names, imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import trainplan
from trainplan.cli.main import COMMANDS, SUMMARIES
from trainplan.cli.page import commands, page

ROOT = Path(__file__).resolve().parents[1]
EXPORTS = [
    "__version__",
    "afford",
    "breakeven",
    "calibrate",
    "check",
    "estimate",
    "load_model",
    "plan",
    "sensitivity",
    "trace",
    "validate",
    "verify",
]
PRICES = [
    "--prices",
    "--price",
    "--capital",
    "--years",
    "--power-kw",
    "--usd-per-kwh",
    "--utilization",
    "--hosting-usd",
    "--storage-gib",
    "--egress-gib",
]
PLAN = [
    "--model",
    "--params",
    "--layers",
    "--hidden",
    "--heads",
    "--kv-heads",
    "--intermediate",
    "--vocab",
    "--tokens",
    "--seq-len",
    "--global-batch",
    "--gpus",
    "--cloud",
    "--region",
    "--tier",
    "--gpus-per-node",
    "--host-memory-gib",
    "--internode-gbps",
    "--fabric",
    "--profile",
    "--max-gpus",
    "--nodes",
    *PRICES,
    "--budget",
    "--deadline",
    "--method",
    "--eval-every",
    "--eval-tokens",
    "--checkpoint-every",
    "--storage-gbps",
    "--mtbf-gpu-hours",
    "--pue",
    "--grid-kgco2-per-kwh",
    "--lora-rank",
    "--lora-targets",
    "--require",
    "--forbid",
    "--kernels",
    "--compile",
    "--nvme-path",
    "--for",
    "--data",
    "--weights",
    "--out",
    "--json",
]
WRITTEN = ("--for", "--data", "--weights", "--out")
ASKED = [option for option in PLAN if option not in WRITTEN]
QUOTES = [
    "--spot-usd-per-gpu-hour",
    "--reserved-usd-per-gpu-hour",
    "--term",
    "--capital",
    "--years",
    "--power-kw",
    "--usd-per-kwh",
    "--hosting-usd",
]
LISTS = ("--prices", "--storage-gib", "--egress-gib")
OPTIONS = {
    "trainplan": [*PLAN, "--version"],
    "trainplan plan": PLAN,
    "trainplan emit": ["--for", "--data", "--model", "--out"],
    "trainplan estimate": [
        "--model",
        "--params",
        "--layers",
        "--hidden",
        "--heads",
        "--kv-heads",
        "--intermediate",
        "--vocab",
        "--tokens",
        "--seq-len",
        "--global-batch",
        "--gpus",
        "--cloud",
        "--region",
        "--tier",
        "--gpus-per-node",
        "--host-memory-gib",
        "--internode-gbps",
        "--fabric",
        "--profile",
        *PRICES,
        "--method",
        "--zero",
        "--micro-batch",
        "--checkpointing",
        "--offload-optimizer",
        "--offload-ratio",
        "--offload-parameters",
        "--tensor-parallel",
        "--pipeline-parallel",
        "--pipeline-chunks",
        "--context-parallel",
        "--expert-parallel",
        "--sequence-parallel",
        "--eval-every",
        "--eval-tokens",
        "--checkpoint-every",
        "--storage-gbps",
        "--mtbf-gpu-hours",
        "--pue",
        "--grid-kgco2-per-kwh",
        "--lora-rank",
        "--lora-targets",
        "--require",
        "--forbid",
        "--kernels",
        "--compile",
        "--nvme-path",
        "--json",
    ],
    "trainplan check": [
        "--model",
        "--params",
        "--layers",
        "--hidden",
        "--heads",
        "--kv-heads",
        "--intermediate",
        "--vocab",
        "--tokens",
        "--seq-len",
        "--global-batch",
        "--gpus",
        "--cloud",
        "--region",
        "--tier",
        "--gpus-per-node",
        "--host-memory-gib",
        "--internode-gbps",
        "--fabric",
        "--profile",
        *PRICES,
        "--method",
        "--checkpointing",
        "--micro-batch",
        "--eval-every",
        "--eval-tokens",
        "--checkpoint-every",
        "--storage-gbps",
        "--mtbf-gpu-hours",
        "--pue",
        "--grid-kgco2-per-kwh",
        "--lora-rank",
        "--lora-targets",
        "--require",
        "--forbid",
        "--kernels",
        "--compile",
        "--nvme-path",
        "--write",
        "--json",
    ],
    "trainplan explain": ["--line", "--json"],
    "trainplan why-not": [
        "--num-gpus",
        "--gpu",
        "--zero",
        "--micro-batch",
        "--method",
        "--offload-optimizer",
        "--offload-parameters",
        "--checkpointing",
        "--prices",
        "--profile",
        "--json",
    ],
    "trainplan sensitivity": ASKED,
    "trainplan breakeven": [
        *(option for option in ASKED[:-1] if option not in set(PRICES) - {*LISTS}),
        *QUOTES,
        "--json",
    ],
    "trainplan afford": ASKED,
    "trainplan trace": [
        "--model",
        "--params",
        "--layers",
        "--hidden",
        "--heads",
        "--kv-heads",
        "--intermediate",
        "--vocab",
        "--seq-len",
        "--method",
        "--micro-batch",
        "--micro-steps",
        "--checkpointing",
        "--attention",
        "--loss",
        "--precision",
        "--lora-rank",
        "--lora-targets",
        "--json",
    ],
    "trainplan verify": ["--steps", "--processes", "--layers", "--device", "--model", "--all", "--json"],
    "trainplan validate": ["--grades", "--good-rows", "--json"],
    "trainplan support": ["--with", "--installed", "--json"],
    "trainplan calibrate": ["--snapshot", "--nvidia-smi", "--gpu", "--good-rows", "--out", "--force", "--json"],
    "trainplan models": [],
    "trainplan models list": ["--json"],
    "trainplan models search": ["--json"],
    "trainplan models show": ["--method", "--lora-rank", "--json"],
    "trainplan gpus": [],
    "trainplan gpus list": ["--json"],
    "trainplan gpus search": ["--json"],
    "trainplan gpus show": ["--json"],
    "trainplan offers": [],
    "trainplan offers list": ["--gpu", "--cloud", "--region", "--tier", "--rejected", "--prices", "--csv", "--json"],
    "trainplan offers search": ["--prices", "--json"],
    "trainplan offers show": ["--prices", "--json"],
    "trainplan offers import": [],
    "trainplan offers import skypilot": ["--from", "--out", "--force", "--json"],
    "trainplan offers import gpuhunt": ["--from", "--out", "--force", "--json"],
    "trainplan completion": [],
}
ONE_GPU = ["--model", "SmolLM2-135M", "--gpus", "1xh100", "--tokens", "10M"]
HEAVY = ("torch", "transformers", "deepspeed", "peft", "bitsandbytes", "huggingface_hub")
DEV = ("pytest", "hypothesis", "mypy", "ruff", "cogapp", "importlinter", "grimp", "build", "setuptools")
HELP_S = 1.0  # measured: 0.1 s; a machine that others use too may be slower


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "trainplan", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def imported(*arguments: str, cwd: Path, without: tuple[str, ...] = ()) -> set[str]:
    """Top-level modules that a command imports; those in ``without`` cannot be imported at all."""
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({without!r}))\n"
        "from trainplan.cli.main import run_root\n"
        f"code = run_root({list(arguments)!r})\n"
        "print(code, *(name for name, module in sys.modules.items() if module and '.' not in name), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=cwd, check=True)
    code, *names = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    return set(names)


def test_exports_are_frozen() -> None:
    """``__all__`` is sorted, is this list, and everything in it is there."""
    assert sorted(trainplan.__all__) == trainplan.__all__ == EXPORTS
    assert all(getattr(trainplan, name) for name in EXPORTS)


def test_every_option_is_frozen() -> None:
    """A command's options are exactly these, in this order; a new one is added here and described in its help."""
    found = {
        ctx.command_path: [
            p.opts[0] for p in ctx.command.params if isinstance(p, click.Option) and p.opts[0] != "--help"
        ]
        for ctx in commands()
    }
    assert found == OPTIONS


def test_every_option_has_help() -> None:
    """No option is left without words."""
    for ctx in commands():
        silent = [p.opts[0] for p in ctx.command.params if isinstance(p, click.Option) and not p.help]
        assert not silent, ctx.command_path


def test_every_command_has_help() -> None:
    """The help of a command says what it does; the root's list knows every command."""
    assert list(SUMMARIES) == list(COMMANDS)
    for ctx in commands():
        assert ctx.command.help
        assert ctx.command_path in ctx.get_help()


def test_the_reference_is_the_help() -> None:
    """docs/reference/cli.md holds every command's help word for word (``cog -r`` writes it)."""
    written = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    assert [line for line in page().splitlines() if line not in written.splitlines()] == []
    assert page() in written


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["--help"], 0),
        ([], 0),
        (["models"], 0),
        (["estimate", *ONE_GPU], 0),
        (["estimate", "--model", "70b", "--gpus", "1xl4", "--zero", "0"], 0),
        (["--model", "no-such-model"], 2),
        (["no-such-command"], 2),
        (["--model", "70b", "--gpus", "l4", "--max-gpus", "1", "--deadline", "1h"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_codes(arguments: list[str], code: int, tmp_path: Path) -> None:
    """0 for an answer, even "does not fit"; 2 for a wrong input; 3 where nothing fits. An error is one line."""
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (code != 0)
    assert bool(done.stdout) == (code == 0)


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    """No planning path needs torch, transformers or DeepSpeed: a plan is made where none of them can be imported."""
    names = imported(*ONE_GPU, "--out", "plan", cwd=tmp_path, without=(*HEAVY, *DEV))
    assert not names & {*HEAVY, *DEV}
    for arguments in (
        ["explain", "plan"],
        ["why-not", "plan", "--zero", "3"],
        ["sensitivity", *ONE_GPU],
        ["breakeven", *ONE_GPU],
        ["afford", *ONE_GPU, "--budget", "5", "--method", "full"],
        ["models", "show", "8b"],
        ["offers", "list"],
    ):
        assert not imported(*arguments, cwd=tmp_path, without=(*HEAVY, *DEV)) & {*HEAVY, *DEV}


def test_help_imports_no_solver(tmp_path: Path) -> None:
    """--help needs neither numpy nor PuLP, so that it is there at once."""
    assert not imported("--help", cwd=tmp_path) & {"numpy", "pulp", "highspy", *HEAVY}


def test_help_is_quick(tmp_path: Path) -> None:
    """The quickest of three starts, interpreter included, stays well below a second."""
    import time

    taken_s = []
    for _ in range(3):
        began = time.perf_counter()
        assert run("--help", cwd=tmp_path).returncode == 0
        taken_s.append(time.perf_counter() - began)
    assert min(taken_s) < HELP_S


@pytest.fixture(scope="module")
def plan_json(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A plan's document as --json prints it."""
    done = run(*ONE_GPU, "--json", cwd=tmp_path_factory.mktemp("json"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_json_of_a_plan(plan_json: dict[str, Any]) -> None:
    """--json prints the document alone; these names are stable."""
    assert plan_json["status"] == "planned"
    assert {"schema_version", "alternatives", "frontier", "assumptions", "solver", "ds_config", "cost"} <= set(
        plan_json
    )
    decision = [
        "gpus",
        "nodes",
        "gpu",
        "offer",
        "method",
        "zero_stage",
        "micro_batch",
        "gradient_accumulation_steps",
        "hours",
        "cost_usd",
        "strategies",
    ]
    assert set(decision) <= set(plan_json["decision"])
    gpu = [
        "capacity_bytes",
        "allocated_bytes",
        "reserved_bytes",
        "device_bytes",
        "upper_bound_bytes",
        "fits",
        "phases",
        "entries",
    ]
    assert set(gpu) <= set(plan_json["memory"]["gpu"])
    assert {"gpu", "host", "nvme"} == set(plan_json["memory"])
    assert {"step_s", "tokens_per_s_per_gpu", "mfu", "terms"} <= set(plan_json["time"])


def test_json_of_a_plan_adds_up(plan_json: dict[str, Any]) -> None:
    """The lines alive in the fullest phase make the allocated bytes; what terms add to the step makes the step."""
    gpu, time = plan_json["memory"]["gpu"], plan_json["time"]
    peak = sum(e["bytes"] for e in gpu["entries"] if gpu["fullest_phase"] in e["phases"])
    assert peak == gpu["allocated_bytes"] == max(gpu["phases"].values())
    assert sum(t["exposed_s"] for t in time["terms"]) == pytest.approx(time["step_s"], rel=1e-9)


def test_json_writes_nothing_unasked(tmp_path: Path) -> None:
    """With --json and without --out no file appears."""
    assert run(*ONE_GPU, "--json", cwd=tmp_path).returncode == 0
    assert not os.listdir(tmp_path)


def test_json_of_an_estimate(tmp_path: Path) -> None:
    """An estimate has a plan's memory, time and cost."""
    document = json.loads(run("estimate", *ONE_GPU, "--json", cwd=tmp_path).stdout)
    assert document["status"] == "estimated"
    assert {"memory", "time", "cost", "configuration", "model", "assumptions", "constraints"} <= set(document)


def test_json_without_a_plan(tmp_path: Path) -> None:
    """Where nothing fits, stdout holds a document with status no_plan, stderr one line, and the exit code is 3."""
    done = run("--model", "70b", "--gpus", "l4", "--max-gpus", "1", "--deadline", "1h", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["status"] == "no_plan"
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "key", "names"),
    [
        ("sensitivity", "scenarios", {"name", "holds", "changed", "stops", "decision", "kept", "regret_usd", "mfu"}),
        ("breakeven", "breakeven", {"name", "value", "never", "unit", "pays", "needs", "figures", "plan"}),
        ("afford", "answers", {"question", "method", "plan", "next", "stops"}),
    ],
)
def test_json_of_an_answer(command: str, key: str, names: set[str], tmp_path: Path) -> None:
    """Each question about a request has its document: the request, and one row an answer."""
    more = ["--budget", "5", "--method", "full"] if command == "afford" else []
    done = run(command, *ONE_GPU, *more, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "answered"
    assert document["request"]["tokens"] == 10_000_000
    assert document[key]
    assert all(names <= set(row) for row in document[key])


def test_json_of_a_model(tmp_path: Path) -> None:
    """``models show`` counts what LoRA trains: rank x (in + out) of each linear layer."""
    done = run("models", "show", "llama-2-7b", "--method", "lora", "--lora-rank", "8", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["parameters"] == 6_738_415_616
    h, f = 4096, 11008
    assert document["trainable_parameters"] == 32 * 8 * (4 * (h + h) + 3 * (h + f))
