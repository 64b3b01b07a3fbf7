"""Every class of configuration that a plan may emit trains on real engines, and trains the same model as stage 0 does.

The configurations are emitted ones, unchanged but for the learning rate, which is the user's to choose: at the emitted
1e-5 three steps move the loss by 0.02, too little to tell a wrong step by; at 1e-3 they move it by 0.8 (measured).
A rate that is 10 % off then shows (0.0026), another beta2 (0.0002) or no clipping (norms are below 1) does not.
Lion is trained offloaded only: without a GPU DeepSpeed has no Lion but its CPU one. QLoRA, 8-bit optimizers, fp16 and
whatever else the compatibility table says runs are trained by `test_support`, on smaller models.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from trainplan.strategies.offload_optimizer import GROUPS

from .configurations import CLASSES, LORA, LORA_OPTIONS, MODELS, SEQUENCE_TOKENS, Planned, planned
from .engine import LOSS_TOLERANCE, EngineRun, Lora, run_engine

pytestmark = pytest.mark.deepspeed

LEARNING_RATE = 1e-3
SHARDED = [name for name in CLASSES if name != "zero0"]
OTHER_FAMILIES = [name for name in MODELS if name != "llama"]


def with_learning_rate(config: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """A copy with another learning rate."""
    optimizer = config["optimizer"]
    return {**config, "optimizer": {**optimizer, "params": {**optimizer["params"], "lr": rate}}}


def train(plan: Planned, *, rate: float = LEARNING_RATE, lora: Lora | None = None) -> EngineRun:
    """The plan's job, checkpointing as planned; the engine trains exactly the elements that the ledger says."""
    run = run_engine(
        with_learning_rate(plan.ds_config, rate),
        model=plan.model,
        lora=lora,
        checkpoint_layers=plan.checkpointed_layers,
        sequence_tokens=SEQUENCE_TOKENS,
    )
    assert run.checkpointed_layers == plan.checkpointed_layers
    assert sum(run.trainable_numels) == plan.trainable
    return run


@cache
def trained(name: str, family: str = "llama") -> EngineRun:
    """One class of configuration, every weight trained; run once."""
    return train(planned(family, **CLASSES[name]))


@cache
def trained_adapters(name: str) -> EngineRun:
    """One class of configuration, adapters only; run once."""
    return train(planned(**CLASSES[name], **LORA_OPTIONS), lora=LORA)


def assert_same_losses(run: EngineRun, reference: EngineRun) -> None:
    """Same losses step by step, and they fall: a model that does not learn would agree with itself."""
    assert run.losses == pytest.approx(reference.losses, rel=0, abs=LOSS_TOLERANCE)
    assert_learns(run)


def assert_learns(run: EngineRun) -> None:
    """Each loss is clearly below the one before."""
    assert all(later < earlier - 10 * LOSS_TOLERANCE for earlier, later in pairwise(run.losses))


@pytest.mark.parametrize("name", SHARDED)
def test_sharding_offload_and_checkpointing_do_not_change_training(name: str) -> None:
    """Where states lie, and what is recomputed, changes no loss."""
    assert_same_losses(trained(name), trained("zero0"))


@pytest.mark.parametrize("name", ["zero2", "zero3"])
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_families_train_alike_at_every_stage(family: str, name: str) -> None:
    """Fused projections, tied embeddings, biases and stacked experts are sharded as a Llama's tensors are."""
    assert_same_losses(trained(name, family), trained("zero0", family))


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3-offload-parameters"])
def test_adapters_train_alike_at_every_stage(name: str) -> None:
    """Adapters train as at stage 0, and only they train: `train` compares the count with the plan's."""
    assert_same_losses(trained_adapters(name), trained_adapters("zero0"))


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("zero2", "AdamW"),
        ("zero3", "AdamW"),
        ("zero2-offload-optimizer", "DeepSpeedCPUAdam"),
        ("zero3-offload-optimizer", "DeepSpeedCPUAdam"),
        ("zero3-offload-share", "DeepSpeedCPUAdam"),
        ("zero3-offload-parameters", "AdamW"),
    ],
)
def test_the_optimizer_is_the_planned_one(name: str, optimizer: str) -> None:
    """Offloaded states are updated by DeepSpeed's CPU kernel, others by torch's fused AdamW."""
    assert trained(name).base_optimizer == optimizer


def test_a_share_is_cut_into_sub_groups() -> None:
    """A share moves whole sub-groups: some 20 of them, each closed by its last tensor; without a share there is one."""
    assert GROUPS // 2 <= trained("zero3-offload-share").sub_groups <= GROUPS
    assert trained("zero3").sub_groups == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adafactor"])
def test_other_optimizers_train(optimizer: str) -> None:
    """Their emitted names and arguments are torch's.

    SGD works element by element, so stages agree. Adafactor scales and clips by the mean square of what it is handed:
    whole tensors at stage 0, a rank's flat slice at stages 2 and 3, which therefore train differently.
    """
    rate = {"sgd": 0.1, "adafactor": 1e-2}[optimizer]  # at 1e-3 three steps move the loss too little to see
    runs = [train(planned(zero=stage, require=(optimizer,)), rate=rate) for stage in (0, 2, 3)]
    for run in runs:
        assert run.base_optimizer.lower() == optimizer
        assert_learns(run)
    if optimizer == "sgd":
        assert_same_losses(runs[1], runs[0])
        assert_same_losses(runs[2], runs[0])


def test_lion_trains_offloaded() -> None:
    """DeepSpeed's CPU Lion takes the emitted arguments, and stages 2 and 3 agree."""
    flat, sharded = (
        train(planned(zero=stage, require=("lion",), offload_optimizer="cpu"), rate=1e-4) for stage in (2, 3)
    )
    assert flat.base_optimizer == "DeepSpeedCPULion"
    assert_same_losses(sharded, flat)
