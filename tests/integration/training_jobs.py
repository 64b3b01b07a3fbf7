"""Jobs of the emitted training script: a folder with train.py, plan.json, a tiny model, a tokenizer and some text."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainplan.planner.architectures import build_model
from trainplan.planner.emit.deepspeed import to_json
from trainplan.planner.plan import core_document

from .configurations import GPUS, LLAMA, estimated
from .engine import ROOT, TIMEOUT_S, environment

SCRIPT = ROOT / "planner" / "job" / "train.py"
SECRET = "hf_thisIsASecretOfTheUser"
WORDS = [f"word{i}" for i in range(300)]
SEED = 20260101


def document(*, steps: int = 5, save_every: int = 100, **options: Any) -> dict[str, Any]:
    """plan.json of a tiny Llama on two GPUs of one node, by `trainplan.estimate` with these options."""
    model = build_model({"model_type": "llama", **LLAMA}, name="tiny-llama", source="tests")
    plan = core_document(estimated(model, **options).candidate)
    plan["training"] |= {"steps": steps, "save_every_steps": save_every}
    return json.loads(json.dumps(plan))  # type: ignore[no-any-return]  # reason: json is untyped


def write_model(folder: Path, dtype: str = "bfloat16") -> None:
    """A seeded tiny Llama as a user would have it, with a tokenizer of 300 words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(SEED)
    config = transformers.AutoConfig.for_model("llama", **LLAMA)
    transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    tokens = ["<unk>", "</s>", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    fast.save_pretrained(folder)


def write_text(path: Path, documents: int = 40) -> None:
    """Documents of 5 to 150 words that repeat themselves, so that learning shows."""
    draw = random.Random(SEED)
    lines = [" ".join(draw.choices(WORDS[:50], k=draw.randint(5, 150))) for _ in range(documents)]
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Job:
    """A folder of a job, and how it is started."""

    folder: Path

    def start(
        self, *options: str, processes: int = GPUS, data: str = "corpus.txt", **variables: str
    ) -> subprocess.Popen[bytes]:
        """The script under torchrun, in a session of its own; its output goes to output.txt."""
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
            *("train.py", "--data", data, "--learning-rate", "1e-3", *options),
        ]
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                env=environment() | {"HF_TOKEN": SECRET, "PYTHONPATH": ""} | variables,
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *options: str, **more: Any) -> str:
        """Run to the end; what was printed.

        Raises:
            AssertionError: it failed or hung.
        """
        process = self.start(*options, **more)
        code = wait(process)
        assert code == 0, f"exit status {code}\n{self.output[-6000:]}"
        return self.output

    @property
    def output(self) -> str:
        """What was printed."""
        return (self.folder / "output.txt").read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of measured.jsonl, if there are any yet."""
        path = self.folder / "measured.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step; of a step that was done twice the later one."""
        return {event["step"]: event["loss"] for event in self.events if event["event"] == "step"}


def wait(process: subprocess.Popen[bytes]) -> int | None:
    """Exit status; none: it hung and was killed."""
    try:
        return process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill(process)
        return None


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the launcher and all its ranks, which have sessions of their own."""
    ranks = list(children(process.pid))
    process.kill()
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def children(parent: int) -> Iterator[int]:
    """Processes that a process started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                yield int(stat.parent.name)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], *, every_s: float = 0.005) -> None:
    """Wait for something that the job does.

    Raises:
        AssertionError: the job ended before.
    """
    while not condition():
        assert process.poll() is None, "the job ended before it did what was waited for"
        time.sleep(every_s)


def new_job(folder: Path, plan: Mapping[str, Any], model: Path) -> Job:
    """A job's folder as `trainplan emit` leaves it, with some text and a link to the model."""
    folder.mkdir(parents=True)
    shutil.copy(SCRIPT, folder / "train.py")
    (folder / "plan.json").write_text(to_json(plan))
    (folder / "ds_config.json").write_text(to_json(plan["ds_config"]))
    (folder / "model").symlink_to(model)
    write_text(folder / "corpus.txt")
    return Job(folder)
