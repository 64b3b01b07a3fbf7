"""Runs a real DeepSpeed engine as gloo processes on the CPU and brings back what it did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKER = "integration.engine_run"  # a module of the tests folder

# cpu_adam is compiled by the first engine that offloads its optimizer: 99 s on 2 busy cores, measured 2026-11-24.
TIMEOUT_S = 600.0

# bf16 keeps 8 significant bits, and DeepSpeedCPUAdam, torch's AdamW and another order of the gradient sums round
# differently: a loss near 6 moves by some 1e-4 a step. An Adam that is one step off moves it by 2e-2 (measured).
LOSS_TOLERANCE = 2e-3

TINY_LLAMA: Mapping[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """A Hugging Face model small enough to train here: transformers' model_type and the keys of its config.json."""

    family: str = "llama"
    config: Mapping[str, Any] = field(default_factory=lambda: dict(TINY_LLAMA))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Adapters as peft makes them, in the dtype of the base model."""

    rank: int = 4
    alpha: int = 8
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one process held.

    ``held_bytes`` maps the end of each part of the last step (start: the engine is built; forward, backward, step; and
    update: ZeRO's first group is about to be updated) to bytes by category. Categories share no storage: their sum is
    what the engine holds. ``peak_bytes`` maps each part to the most that was alive at once during any step, temporaries
    and activations included; rank 0's start includes building the seeded model. Both are empty unless measured.
    """

    rank: int
    held_bytes: Mapping[str, Mapping[str, int]]
    peak_bytes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """One training run: the loss of each optimizer step, meaned over its micro-steps and ranks."""

    losses: tuple[float, ...]
    optimizer: str  # DeepSpeed's wrapper, e.g. "DeepSpeedZeroOptimizer_Stage3"
    base_optimizer: str  # what the wrapper drives, e.g. "DeepSpeedCPUAdam"
    trainable_numels: tuple[int, ...]  # in the order of model.named_parameters()
    frozen_numels: tuple[int, ...]
    checkpointed_layers: int
    sub_groups: int  # ZeRO-3 only; 0 otherwise
    ranks: tuple[Rank, ...]
    wall_s: float


def run_engine(
    ds_config: Mapping[str, Any],
    *,
    processes: int = 2,
    model: TinyModel | None = None,
    lora: Lora | None = None,
    checkpoint_layers: int = 0,
    steps: int = 3,
    sequence_tokens: int = 64,
    measure: bool = False,
) -> EngineRun:
    """Train a tiny model with the real ``deepspeed.initialize(config=ds_config)`` on CPU processes.

    Every run with the same model, LoRA, steps, global batch and precision starts from the same weights and sees the
    same tokens, however its batch is cut over micro-steps and ranks, so that losses of configurations can be compared.

    Args:
        ds_config: the configuration as it would stand in ds_config.json; not changed.
        processes: data-parallel ranks.
        model: what to train; the tiny Llama by default.
        lora: train adapters only.
        checkpoint_layers: how many layers, from the first on, recompute their activations.
        steps: optimizer steps; at least 3, as stage 3 prefetches from the third iteration on.
        sequence_tokens: tokens of one sequence.
        measure: walk the engine's tensors and follow allocations (slower).

    Raises:
        AssertionError: a process failed or hung; carries the end of its output.
    """
    spec = {
        "ds_config": dict(ds_config),
        "model": asdict(model or TinyModel()),
        "lora": asdict(lora) if lora else None,
        "checkpoint_layers": checkpoint_layers,
        "steps": steps,
        "sequence_tokens": sequence_tokens,
        "measure": measure,
    }
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trainplan-engine-") as folder:
        (Path(folder) / "spec.json").write_text(json.dumps(spec))
        launch(Path(folder), processes)
        reports = [json.loads((Path(folder) / f"rank{rank}.json").read_text()) for rank in range(processes)]
    return _collect(reports, wall_s=time.monotonic() - started_s)


def launch(folder: Path, processes: int, *, worker: str = WORKER) -> None:
    """Run a worker under torchrun, in a session of its own so that nothing outlives a timeout."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", worker, str(folder)),
    ]
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment(), cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            code = None
    # gloo aborts now and then while processes end (1 of about 90 runs here); a report is a rank's last act before that
    if code is None or (code != 0 and not _all_reported(folder, processes)):
        raise AssertionError(_failure(code, log.read_text(errors="replace")))


def _all_reported(folder: Path, processes: int) -> bool:
    """Whether every rank had finished its work and written it down whole."""
    try:
        return all(json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes))
    except (OSError, ValueError):
        return False


def _failure(code: int | None, output: str) -> str:
    """Why a run failed, with the end of what it printed."""
    hint = (
        f"no end after {TIMEOUT_S:.0f} s; a killed compiler leaves a lock: remove {extensions_folder()} and try again"
    )
    return f"the engine failed: {hint if code is None else f'exit status {code}'}\n{output[-6000:]}"


def extensions_folder() -> Path:
    """Where DeepSpeed's compiled operators are kept between runs of this checkout."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", ROOT / "build" / "torch_extensions"))


def environment() -> dict[str, str]:
    """The caller's environment, less its rendezvous, plus what CPU engines need."""
    rendezvous = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {key: value for key, value in os.environ.items() if key not in rendezvous}
    scripts = str(Path(sys.executable).parent)  # ninja is installed there
    kept["PATH"] = os.pathsep.join([scripts, kept.get("PATH", os.defpath)])
    if sys.platform == "linux":
        kept["GLOO_SOCKET_IFNAME"] = "lo"  # otherwise gloo resolves the host's name, which a container may not know
    return kept | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "tests"),
        "TORCH_EXTENSIONS_DIR": str(extensions_folder()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _collect(reports: Sequence[Mapping[str, Any]], *, wall_s: float) -> EngineRun:
    """One run from its ranks' reports; the losses are already meaned over ranks."""
    first = reports[0]
    return EngineRun(
        losses=tuple(first["losses"]),
        optimizer=first["optimizer"],
        base_optimizer=first["base_optimizer"],
        trainable_numels=tuple(first["trainable_numels"]),
        frozen_numels=tuple(first["frozen_numels"]),
        checkpointed_layers=first["checkpointed_layers"],
        sub_groups=first["sub_groups"],
        ranks=tuple(
            Rank(rank=rank, held_bytes=report["held_bytes"], peak_bytes=report["peak_bytes"])
            for rank, report in enumerate(reports)
        ),
        wall_s=wall_s,
    )
