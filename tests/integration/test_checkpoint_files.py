"""planner/checkpoint.py against the files that real engines write: every ZeRO stage, full and with adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from trainplan.planner.architectures import build_model
from trainplan.planner.checkpoint import Checkpoint

from .configurations import GPUS, LLAMA, MODELS, SEQUENCE_TOKENS, estimated, planned
from .engine import Lora, launch

pytestmark = pytest.mark.deepspeed

CASES = tuple((stage, adapters) for adapters in (False, True) for stage in range(4))
LORA = Lora(rank=64)  # adapters of more bytes than a file adds
LORA_OPTIONS: Mapping[str, Any] = {"method": "lora", "lora_rank": LORA.rank, "lora_targets": LORA.targets}
OVERHEAD_BYTES = 100_000  # names, shapes and alignment of a file, for each of which a tensor has some hundred bytes


@cache
def files() -> tuple[Mapping[str, int], ...]:
    """Bytes of every file, by case; all engines in one pair of processes."""
    specs = [
        {
            "ds_config": dict(planned(zero=stage, **(LORA_OPTIONS if adapters else {})).ds_config),
            "model": asdict(MODELS["llama"]),
            "lora": asdict(LORA) if adapters else None,
            "steps": 3,
            "sequence_tokens": SEQUENCE_TOKENS,
        }
        for stage, adapters in CASES
    ]
    with TemporaryDirectory(prefix="trainplan-checkpoints-") as name:
        folder = Path(name)
        (folder / "specs.json").write_text(json.dumps(specs))
        launch(folder, GPUS, worker="integration.engine_checkpoint")
        return tuple(json.loads((folder / "rank0.json").read_text()))


def predicted(stage: int, *, adapters: bool) -> Checkpoint:
    """What the estimate of the same configuration says."""
    model = build_model({"model_type": "llama", **LLAMA}, name="tiny", source="tests")
    found = estimated(model, zero=stage, **(LORA_OPTIONS if adapters else {}))
    return found.candidate.cost.run.saved


@pytest.mark.parametrize(("stage", "adapters"), CASES)
def test_files_hold_the_predicted_bytes(stage: int, adapters: bool) -> None:
    """Weights, the engine's copy of them, and the states: each within what a file adds."""
    measured, expected = files()[CASES.index((stage, adapters))], predicted(stage, adapters=adapters)
    weights = sum(size for name, size in measured.items() if name.startswith("weights"))
    states = {name: size for name, size in measured.items() if name.endswith("optim_states.pt")}
    module = sum(size for name, size in measured.items() if name.endswith("model_states.pt"))
    assert weights == pytest.approx(expected.weights_bytes, abs=OVERHEAD_BYTES)
    assert len(states) == (GPUS if expected.sharded else 0)
    if expected.sharded:
        assert sum(states.values()) == pytest.approx(expected.states_bytes, abs=OVERHEAD_BYTES)
        assert module == pytest.approx(expected.module_bytes, abs=OVERHEAD_BYTES)
    else:
        assert module == pytest.approx(expected.module_bytes + expected.states_bytes, abs=OVERHEAD_BYTES)


def test_the_files_are_large_enough_to_tell() -> None:
    """Weights and adapters are far more than what a file adds."""
    assert predicted(3, adapters=False).weights_bytes > 50 * OVERHEAD_BYTES
    assert predicted(3, adapters=True).weights_bytes > 5 * OVERHEAD_BYTES
