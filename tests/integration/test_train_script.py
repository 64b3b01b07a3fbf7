"""The emitted training script on two processes: it trains what the plan says, and a kill at any point loses nothing.

Each strategy trains as stage 0 does; interrupted runs repeat the losses of an uninterrupted one exactly. What needs a
GPU (Liger, fp16, memories, paged optimizers) is not run here.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from .engine import LOSS_TOLERANCE
from .training_jobs import SECRET, Job, children, document, kill, new_job, until, wait, write_model

pytestmark = pytest.mark.deepspeed

STEPS = 6
FAST = ("--learning-rate", "1e-2")  # adapters start at nothing
LORA: Mapping[str, Any] = {"method": "lora", "lora_rank": 4, "lora_targets": ("q_proj", "v_proj", "up_proj")}
FIRST = "step-00000002"
PLACE = """it's "a job" [1]"""

# Runs in every process of the job, in the test's environment alone: kills the job before a rename makes a folder valid.
KILLER = """
import glob, os, signal
real = os.replace
def replace(source, destination, **more):
    if os.path.basename(destination) == os.environ["KILL_BEFORE"]:
        parent = os.getppid()
        for path in glob.glob("/proc/[0-9]*/stat"):
            pid = int(path.split("/")[2])
            if int(open(path).read().rpartition(")")[2].split()[1]) == parent and pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        os.kill(parent, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, destination, **more)
os.replace = replace
"""

PADDED = "padded-batches"  # of whole models, so that masks are tried as well; adapters are trained on full batches
PLANS: Mapping[str, Mapping[str, Any]] = {
    "zero0": {"zero": 0, "require": (PADDED,)},
    "zero2": {
        "zero": 2,
        "offload_optimizer": "cpu",
        "checkpointing": 2,
        "require": (PADDED, "checkpointing-offload"),
    },
    "zero3": {
        "zero": 3,
        "offload_parameters": "cpu",
        "offload_optimizer": "cpu",
        "checkpointing": 3,
        "require": (PADDED, "chunked-loss"),
    },
    "share": {"zero": 3, "offload_optimizer": "cpu", "offload_ratio": 0.6, "require": (PADDED,)},
    "lora": {"zero": 2, **LORA},
    "lora3": {"zero": 3, "checkpointing": 2, "require": ("chunked-loss",), **LORA},
    "qlora": {"zero": 2, "checkpointing": 2, "method": "qlora", "lora_rank": 4},
}
NEW = ("--from-scratch", "--tokenizer", "model")
OLD = ("--model", "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs of this module lie, with the model that they share."""
    made = tmp_path_factory.mktemp("jobs")
    write_model(made / "model")
    return made


@pytest.fixture(scope="module")
def started(folder: Path) -> Callable[..., Job]:
    """Makes the job of a plan, once."""

    @cache
    def job(name: str, place: str = "") -> Job:
        plan = document(steps=STEPS, save_every=2, **PLANS[name])
        if name.startswith("lora"):
            plan["adapters"]["dropout"] = 0.1  # so that a lost random state shows
        return new_job(folder / (place or name), plan, folder / "model")

    return job


@pytest.fixture(scope="module")
def trained(started: Callable[..., Job]) -> Callable[..., Job]:
    """Runs the job of a plan from start to end, once."""

    @cache
    def job(name: str, *options: str) -> Job:
        made = started(name)
        made.run(*options)
        return made

    return job


def assert_learns(losses: Mapping[int, float]) -> None:
    """The last loss is clearly below the first: a model that does not learn would agree with itself."""
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] - 10 * LOSS_TOLERANCE


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_strategies_do_not_change_training(name: str, trained: Callable[..., Job]) -> None:
    """Sharding, offload, recomputation and the chunked loss train what stage 0 trains, from the same new weights."""
    reference, job = trained("zero0", *NEW), trained(name, *NEW)
    assert_learns(reference.losses)
    assert job.losses == pytest.approx(reference.losses, rel=0, abs=LOSS_TOLERANCE)


def test_trained_weights_load_as_any_model(trained: Callable[..., Job]) -> None:
    """The exported folder is a model of its own: it has learnt, and stages agree in every weight."""
    import torch
    import transformers

    models = [
        transformers.AutoModelForCausalLM.from_pretrained(trained(name, *NEW).folder / "run" / "model")
        for name in ("zero0", "zero3")
    ]
    for (name, mine), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=0.1, atol=0.01), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained("zero3", *NEW).folder / "run" / "model")
    text = (trained("zero3", *NEW).folder / "corpus.txt").read_text()
    ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
    assert float(models[1](input_ids=ids, labels=ids).loss.detach()) < trained("zero3", *NEW).losses[1] - 0.5


def test_adapters_train_alike(trained: Callable[..., Job]) -> None:
    """LoRA at stage 3 with recomputed layers drops out the same elements as at stage 2 without."""
    reference, job = trained("lora", *OLD, *FAST), trained("lora3", *OLD, *FAST)
    assert_learns(reference.losses)
    assert job.losses == pytest.approx(reference.losses, rel=0, abs=LOSS_TOLERANCE)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_adapters_load_onto_the_model(trained: Callable[..., Job], folder: Path) -> None:
    """What is exported is the adapters alone, trained, of the planned rank."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    adapted = peft.PeftModel.from_pretrained(base, trained("lora3", *OLD, *FAST).folder / "run" / "model")
    changed = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert changed
    assert all(weight.shape[1] == LORA["lora_rank"] and weight.abs().sum() > 0 for weight in changed)


def test_quantised_bases_train(trained: Callable[..., Job]) -> None:
    """4-bit weights with adapters, recomputed, at stage 2; bitsandbytes' kernels for the CPU."""
    assert_learns(trained("qlora", *OLD, *FAST).losses)


def test_killed_jobs_lose_nothing(started: Callable[..., Job], trained: Callable[..., Job], tmp_path: Path) -> None:
    """kill -9 while a checkpoint is written, while it is made valid, and at any moment: the end is the same, exactly.

    Losses of every step and the trained weights equal those of the run that was never interrupted, in a folder whose
    name needs quoting.
    """
    reference, job = trained("lora", *OLD, *FAST), started("lora", PLACE)
    checkpoints, options = job.folder / "run" / "checkpoints", (*OLD, *FAST)
    (tmp_path / "sitecustomize.py").write_text(KILLER)

    process = job.start(*options)  # killed while the first checkpoint is written
    until(lambda: any(checkpoints.glob(f"{FIRST}.partial/*")), process)
    kill(process)
    assert not [path for path in checkpoints.glob("step-*") if path.name not in (f"{FIRST}.partial", FIRST)]

    process = job.start(*options, PYTHONPATH=str(tmp_path), KILL_BEFORE="step-00000004")  # written, not made valid
    assert wait(process) != 0
    assert (checkpoints / "step-00000004.partial" / "complete.json").exists()
    assert (checkpoints / FIRST / "complete.json").exists()

    process = job.start(*options)  # killed at some moment after it went on
    until(lambda: any(event.get("resumed_step") == 2 for event in job.events), process)
    assert not list(checkpoints.glob("*.partial"))
    time.sleep(random.Random().uniform(0, 3))
    kill(process)

    job.run(*options)
    assert job.losses == reference.losses
    assert_same_files(job.folder / "run" / "model", reference.folder / "run" / "model")


def assert_same_files(folder: Path, other: Path) -> None:
    """Weights of both are equal to the bit."""
    for path in folder.glob("*.safetensors"):
        assert path.read_bytes() == (other / path.name).read_bytes()
    assert list(folder.glob("*.safetensors"))


def test_a_notice_saves_and_stops(started: Callable[..., Job], trained: Callable[..., Job]) -> None:
    """SIGTERM: the job saves after the last whole step and says so; started again it trains as if never stopped.

    A share of the states is offloaded, the rest has an optimizer of its own, which DeepSpeed's checkpoints leave out.
    """
    job = started("share")
    process = job.start(*NEW)
    until(lambda: bool(job.losses), process)
    os.kill(next(children(process.pid)), signal.SIGTERM)  # one rank hears it, all stop
    assert wait(process) != 0
    done = max(job.losses)
    assert 0 < done < STEPS
    assert set(re.findall(r"exitcode *: (\d+)", job.output)) == {"75"}
    assert f"stopped by SIGTERM after step {done}" in job.output
    assert (job.folder / "run" / "checkpoints" / f"step-{done:08d}" / "complete.json").exists()
    job.run(*NEW)
    assert [event["resumed_step"] for event in job.events if event["event"] == "job"] == [0, done]
    assert job.losses == pytest.approx(trained("zero0", *NEW).losses, rel=0, abs=LOSS_TOLERANCE)


def test_the_log_holds_steps_and_promise(trained: Callable[..., Job]) -> None:
    """One line for the job, one a step, one promise; memories of a GPU are unknown on a CPU."""
    job = trained("zero0", *NEW)
    assert [event["event"] for event in job.events] == ["job", *["step"] * 5, "promise", "step"]
    first, step, promise = job.events[0], job.events[1], job.events[6]
    assert (job.folder / first["plan"]).read_bytes() == (job.folder / "plan.json").read_bytes()
    assert (first["world_size"], first["device"], first["gpu"], first["resumed_step"]) == (2, "cpu", None, 0)
    assert (step["allocated_bytes"], step["reserved_bytes"], step["device_bytes"]) == (None, None, None)
    assert step["host_bytes"] > 2**28  # two processes with torch
    measured = [event["step_s"] for event in job.events[4:6]]
    assert promise["step_s"]["measured"] == pytest.approx(sum(measured) / 2)
    assert promise["allocated_bytes"]["measured"] is None
    assert promise["allocated_bytes"]["planned"] > 0
    assert "allocated memory: not measured on a CPU" in job.output


def test_old_checkpoints_go(trained: Callable[..., Job]) -> None:
    """Two are kept, each whole, and nothing half-written."""
    kept = sorted(path.name for path in (trained("zero3", *NEW).folder / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000004", "step-00000006"]


def test_no_secret_is_written(trained: Callable[..., Job], folder: Path) -> None:
    """The token of the environment is in no file that a job left."""
    trained("zero0", *NEW)
    left = [path for path in folder.rglob("*") if path.is_file() and "model" not in path.parts]
    assert left
    assert not [path for path in left if SECRET.encode() in path.read_bytes()]
