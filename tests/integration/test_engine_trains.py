"""Every class of configuration that a plan may emit trains on real engines, and trains the same model as stage 0 does.

The configurations are emitted ones, unchanged but for the learning rate, which is the user's to choose: at the emitted
1e-5 three steps move the loss by 0.02, too little to tell a wrong step by; at 1e-3 they move it by 0.8 (measured).
Lion is trained offloaded only: without a GPU DeepSpeed has no Lion but its CPU one. fp16, 8-bit optimizers, QLoRA and
NVMe need what a CPU test machine lacks: `test_against_deepspeed_parser` parses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from .configurations import CLASSES, LORA, LORA_OPTIONS, MODELS, SEQUENCE_TOKENS, Planned, planned
from .engine import LOSS_TOLERANCE, EngineRun, run_engine

pytestmark = pytest.mark.deepspeed

LEARNING_RATE = 1e-3
SHARDED = [name for name in CLASSES if name != "zero0"]
OTHER_FAMILIES = [name for name in MODELS if name != "llama"]


def with_learning_rate(config: Mapping[str, Any], rate: float = LEARNING_RATE) -> dict[str, Any]:
    """A copy with another learning rate."""
    optimizer = config["optimizer"]
    return {**config, "optimizer": {**optimizer, "params": {**optimizer["params"], "lr": rate}}}


def train(plan: Planned, **options: Any) -> EngineRun:
    """The plan's job, checkpointing as planned; the engine trains exactly the elements that the ledger says."""
    config = with_learning_rate(plan.ds_config)
    run = run_engine(
        config,
        model=plan.model,
        checkpoint_layers=plan.checkpointed_layers,
        sequence_tokens=SEQUENCE_TOKENS,
        **options,
    )
    assert run.checkpointed_layers == plan.checkpointed_layers
    assert sum(run.trainable_numels) == plan.trainable
    return run


@cache
def reference(family: str = "llama", optimizer: str = "adamw") -> EngineRun:
    """Stage 0, every weight trained: what the others are compared with."""
    return train(planned(family, zero=0, require=(optimizer,)))


@cache
def lora_reference() -> EngineRun:
    """Stage 0, adapters only."""
    return train(planned(zero=0, **LORA_OPTIONS), lora=LORA)


def assert_same_losses(run: EngineRun, expected: EngineRun) -> None:
    """Same losses step by step, and they fall: a model that does not learn would agree with itself."""
    assert run.losses == pytest.approx(expected.losses, rel=0, abs=LOSS_TOLERANCE)
    assert_learns(run)


def assert_learns(run: EngineRun) -> None:
    """Each loss is below the one before."""
    assert list(run.losses) == sorted(set(run.losses), reverse=True)


@pytest.mark.parametrize("name", SHARDED)
def test_sharding_offload_and_checkpointing_do_not_change_training(name: str) -> None:
    """Where states lie, and what is recomputed, changes no loss."""
    assert_same_losses(train(planned(**CLASSES[name])), reference())


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_train_alike_at_every_stage(family: str, stage: int) -> None:
    """Fused projections, tied embeddings, biases and stacked experts are sharded as a Llama's tensors are."""
    assert_same_losses(train(planned(family, zero=stage)), reference(family))


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3-offload-parameters"])
def test_adapters_train_alike_at_every_stage(name: str) -> None:
    """Adapters train as at stage 0, and only they train: `train` compares the count with the plan's."""
    assert_same_losses(train(planned(**CLASSES[name], **LORA_OPTIONS), lora=LORA), lora_reference())


@pytest.mark.parametrize(
    ("name", "wrapped"),
    [
        ("zero2", "AdamW"),
        ("zero3", "AdamW"),
        ("zero2-offload-optimizer", "DeepSpeedCPUAdam"),
        ("zero3-offload-optimizer", "DeepSpeedCPUAdam"),
        ("zero3-offload-parameters", "AdamW"),
    ],
)
def test_the_optimizer_is_the_planned_one(name: str, wrapped: str) -> None:
    """Offloaded states are updated by DeepSpeed's CPU kernel, others by torch's fused AdamW."""
    assert train(planned(**CLASSES[name])).base_optimizer == wrapped
