"""What the training script refuses before it loads anything heavy, and the arithmetic that needs nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from trainplan.planner.job import train

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "planner" / "job" / "train.py"
PLANS = sorted((ROOT / "tests" / "golden").glob("*/plan.json"))
TWO_GPUS = {"gpus": 2, "data_parallel_world_size": 2, "micro_batch": 1, "gradient_accumulation_steps": 2}


def small(**changes: Any) -> dict[str, Any]:
    """A plan for two GPUs, from a golden one; keys with dots reach inwards."""
    plan: dict[str, Any] = json.loads(PLANS[0].read_text())
    plan["decision"] |= TWO_GPUS
    plan["training"]["global_batch"] = plan["ds_config"]["train_batch_size"] = 4
    plan["ds_config"] |= {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2}
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = plan
        for key in parents:
            inner = inner[key]
        inner[last] = value
    return plan


class Refuse(Protocol):
    """Starts the script as one of so many ranks; the one line that it prints."""

    def __call__(self, plan: Mapping[str, Any] | str, *options: str, ranks: int = 2) -> str: ...


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Checks the exit code and that nothing else is printed."""

    def line(plan: Mapping[str, Any] | str, *options: str, ranks: int = 2) -> str:
        (tmp_path / "plan.json").write_text(plan if isinstance(plan, str) else json.dumps(plan))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        assert train.main(["--plan", str(tmp_path / "plan.json"), *options]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    return line


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.name)
def test_plans_are_accepted(path: Path) -> None:
    """Whatever trainplan writes, its script reads, for the planned number of ranks."""
    plan = train.read_plan(path)
    train.check_world(plan, train.ranks_of(plan))
    assert train.learning_rate(plan) > 0


def test_another_world_size_is_refused_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    """With the equation, and both ways out; only rank 0 says so."""
    (tmp_path / "plan.json").write_text(json.dumps(small()))
    code = (
        f"import runpy, sys; sys.argv = ['train.py', '--data', 'x.txt', '--plan', {str(tmp_path / 'plan.json')!r}]\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "finally: assert not {'torch', 'transformers', 'deepspeed', 'datasets'} & set(sys.modules), 'heavy'"
    )
    lines = []
    for rank in ("0", "1"):
        environment = {"WORLD_SIZE": "3", "RANK": rank, "LOCAL_RANK": rank}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (2, "")
        lines.append(done.stderr)
    assert lines == [
        "train.py: global batch 4 = micro-batch 1 x accumulation 2 x 2 ranks; this job has 3 ranks; start 2, "
        f"or plan again with --gpus 3x{small()['decision']['gpu']}\n",
        "",
    ]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (lambda: json.dumps(small())[:500], "not JSON"),
        (lambda: "[" * 100_000, "not JSON"),
        (lambda: "[]", "schema_version is None"),
        (lambda: small(schema_version=2), "schema_version is 2; this train.py reads 1"),
        (lambda: small(status="no plan"), "status is 'no plan'"),
        (lambda: small(training__seq_len="4096"), "training.seq_len: must be int, got '4096'"),
        (lambda: small(training__packed=1), "training.packed: must be bool, got '1'"),
        (lambda: small(training__precision="fp8"), "training.precision: must be one of bf16, fp16, fp32, got 'fp8'"),
        (lambda: small(training__steps=0), "training.steps: must be 1 or more, got 0"),
        (lambda: small(training=None), "training.seq_len: must be int"),
        (lambda: small(decision__data_parallel_world_size="two"), "data_parallel_world_size: must be int, got 'two'"),
        (lambda: small(decision__micro_batch=-1, decision__gradient_accumulation_steps=-2), "micro_batch: must be 1"),
        (lambda: small(training__loss_chunk_tokens=-1), "checkpointed layers must be 0 or more, got -1"),
        (lambda: {k: v for k, v in small().items() if k != "adapters"}, "adapters: is missing"),
        (lambda: small(adapters={"rank": "many"}), "adapters.rank: must be int, got 'many'"),
        (lambda: small(decision__micro_batch=2), "ds_config.train_micro_batch_size_per_gpu is 1, the rest"),
        (lambda: small(decision__zero_stage=1), "ds_config.zero_optimization.stage is"),
        (lambda: small(training__global_batch=8), "train_batch_size is 4, the rest of the plan says 8"),
        (lambda: small(ds_config__bf16={"enabled": False}), "precision of ds_config is fp32"),
        (lambda: small(memory__gpu__allocated_bytes="much"), "memory.gpu.allocated_bytes: must be int or float"),
    ],
)
def test_bad_plans_are_refused_in_one_line(
    tmp_path: Path, refused: Refuse, plan: Callable[[], Any], words: str
) -> None:
    """Truncated, of another version, of wrong types, edited in one place only: where, what, what to do."""
    line = refused(plan(), "--data", "x.txt")
    assert line.startswith(f"train.py: {tmp_path / 'plan.json'}: ")
    assert words in line


def test_flags_are_refused_in_one_line(refused: Refuse) -> None:
    """No data, no such plan, a count that is none, a new model without tokenizer."""
    assert "required: --data" in refused(small())
    assert "cannot be read, No such file" in refused(small(), "--data", "x", "--plan", "nowhere.json")
    assert "--keep: must be 1 or more, got 0" in refused(small(), "--data", "x", "--keep", "0")
    assert "--steps: must be 1 or more, got 0" in refused(small(), "--data", "x", "--steps", "0")
    assert "--save-every: must be 1 or more, got 0" in refused(small(), "--data", "x", "--save-every", "0")
    assert "--learning-rate: must be a number above 0, got nan" in refused(
        small(), "--data", "x", "--learning-rate", "nan"
    )
    assert "--final-rate: must be from 0 to 1, got 2.0" in refused(small(), "--data", "x", "--final-rate", "2")
    assert "--warmup-steps: must be 0 or more, got -1" in refused(small(), "--data", "x", "--warmup-steps=-1")
    assert "--tokenizer: a new model needs one" in refused(small(), "--data", "x", "--from-scratch")
    assert "--model: the plan names no hub id" in refused(small(training__model=None), "--data", "x")


def test_an_edited_ds_config_is_not_passed_over(tmp_path: Path, refused: Refuse) -> None:
    """The file beside the plan is not what trains, so it may not say something else."""
    (tmp_path / "ds_config.json").write_text("{}")
    assert "ds_config.json: differs from ds_config in plan.json" in refused(small(), "--data", "x")
    (tmp_path / "ds_config.json").write_text("[" * 100_000)
    assert "ds_config.json: differs from ds_config in plan.json" in refused(small(), "--data", "x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranks": 4}, "a checkpoint of another job, ranks 4; this one has 2"),
        ({"plan": "other"}, "a checkpoint of another job, plan 'other'"),
        ({"data": "y.txt train text"}, "data 'y.txt train text'; this one has 'x.txt train text'"),
    ],
)
def test_checkpoints_of_another_job_are_refused(
    tmp_path: Path, refused: Refuse, changes: Mapping[str, Any], words: str
) -> None:
    """World size, plan and data are those it was made with; a longer run is the same job."""
    options = train.command_line().parse_args(["--data", "x.txt", "--plan", str(tmp_path / "plan.json")])
    (tmp_path / "plan.json").write_text(json.dumps(small()))
    identity = train.identity(train.read_plan(tmp_path / "plan.json"), options)
    assert identity == train.identity(small(training__steps=7, training__save_every_steps=3), options)
    folder = tmp_path / "run" / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text(json.dumps({**identity, **changes}))
    assert words in refused(small(), "--data", "x.txt")


def test_the_newest_whole_checkpoint_counts(tmp_path: Path) -> None:
    """Folders without their last file, and half-written ones, are none."""
    checkpoints = train.Checkpoints(tmp_path, {"ranks": 2}, 2)
    assert checkpoints.newest() == 0
    for name in ("step-00000002", "step-00000010", "step-00000012.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "complete.json").write_text('{"ranks": 2}')
    (tmp_path / "step-00000011").mkdir()
    assert checkpoints.newest() == 10


def test_other_versions_are_a_warning_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build's name is no other version; what is not installed is missed where it is imported."""
    installed = {"torch": "2.13.0", "deepspeed": "0.19.7", "peft": None}
    monkeypatch.setattr(train, "version", installed.get)
    plan = {"training": {"versions": {"torch": "2.13.0", "deepspeed": "0.19.8", "peft": "0.21.2"}}}
    assert train.version_warnings(plan) == [
        "warning: deepspeed 0.19.7 is installed, the plan was made for 0.19.8: its figures may be off"
    ]


def test_a_torn_line_is_taken_off_the_log(tmp_path: Path) -> None:
    """What a kill left half-written goes; whole lines stay."""
    path = tmp_path / "measured.jsonl"
    path.write_text('{"event": "step"}\n{"eve')
    train.Log(path).write("job", {"step": 1})
    assert path.read_text() == '{"event": "step"}\n{"event": "job", "step": 1}\n'


def test_secrets_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of variables that are named like secrets; short ones would blot out words."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("OTHER_TOKEN", "step")
    assert train.hide_secrets("step: https://user:hf_abcdef@host") == "step: https://user:***@host"


def test_numbers_of_the_log_stay_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of tokens is named like a secret; only texts are blotted out, so that every line stays JSON."""
    monkeypatch.setenv("MAX_TOKENS", "131072")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    path = tmp_path / "measured.jsonl"
    train.Log(path).write("step", {"host_bytes": 1310720, "versions": {"a": "hf_abcdef"}})
    assert json.loads(path.read_text()) == {"event": "step", "host_bytes": 1310720, "versions": {"a": "***"}}


def test_the_rate_rises_and_falls() -> None:
    """Linear to the peak, half a cosine to its end."""
    rates = [train.rate_at(s, steps=100, peak=2.0, warmup=10, floor=0.1) for s in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * s for s in range(1, 11)])
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[-1] == pytest.approx(0.2)
    assert max(rates) == rates[9]


def test_a_promise_is_judged_by_its_range() -> None:
    """Warm-up steps do not count for seconds, all steps for peaks."""
    gib = 2**30
    step = {"allocated_bytes": 3 * gib, "reserved_bytes": None, "device_bytes": 5 * gib}
    events = [step | {"step": i, "step_s": s} for i, s in enumerate((9.0, 9.0, 9.0, 2.0, 3.0), start=1)]
    band = {"low_bytes": 1 * gib, "upper_bytes": 4 * gib}
    gpu = {f"{name}_bytes": 2 * gib for name in train.MEMORIES} | {"ranges": {"allocated": band, "device": band}}
    promise = train.promise_event({"time": {"step_s": 2.0}, "memory": {"gpu": gpu}}, events)
    assert promise["step_s"] == {"measured": 2.5, "planned": 2.0, "low": None, "upper": None}
    lines = [train.promise_line(name, row) for name, row in promise.items() if name != "step"]
    assert lines == [
        "step time: 2.50 s measured, 2.00 s planned, without a range",
        "allocated memory: 3.00 GiB measured, 2.00 GiB planned (1.00 to 4.00 GiB): inside the range",
        "reserved memory: not measured on a CPU, 2.00 GiB planned",
        "device memory: 5.00 GiB measured, 2.00 GiB planned (1.00 to 4.00 GiB): above the range",
    ]
