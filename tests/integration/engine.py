"""Runs a real DeepSpeed engine as gloo processes on the CPU and brings back what it did."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainplan.planner.errors import EngineFailed
from trainplan.planner.verify import launch as verify

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
    """Run one of the tests' workers.

    Raises:
        AssertionError: a process failed or hung; carries the end of its output.
    """
    try:
        verify.launch(folder, processes, environment=environment(processes), worker=worker, timeout_s=TIMEOUT_S)
    except EngineFailed as error:
        output = (folder / "output.txt").read_text(errors="replace")
        raise AssertionError(f"{error}\n{output[-6000:]}") from error


def extensions_folder() -> Path:
    """Where DeepSpeed's compiled operators are kept between runs of this checkout."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR", ROOT / "build" / "torch_extensions"))


def environment(processes: int = 2) -> dict[str, str]:
    """That of a plan's engines on a CPU, with this checkout's operators and the tests' modules."""
    found = verify.environment("cpu", processes)
    return found | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests"), found.get("PYTHONPATH")])),
        "TORCH_EXTENSIONS_DIR": str(extensions_folder()),
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
