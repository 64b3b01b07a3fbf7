"""The harness itself: what it measures, how it cuts a batch, how it fails."""

from __future__ import annotations

from typing import Any

import pytest

from .configurations import GLOBAL_BATCH, LLAMA, MODELS, SEQUENCE_TOKENS, planned
from .engine import LOSS_TOLERANCE, EngineRun, run_engine

pytestmark = pytest.mark.deepspeed


def measured(**options: Any) -> EngineRun:
    """A plan's job with its bytes followed."""
    plan = planned(**options)
    layers = plan.checkpointed_layers
    return run_engine(plan.ds_config, model=plan.model, checkpoint_layers=layers, measure=True)


def test_batch_cut_does_not_change_training() -> None:
    """A global batch of 4 as 2 ranks x 2 micro-steps or as 1 rank x 4 is one batch, at the emitted rate."""
    config = dict(planned(zero=2).ds_config)
    double = run_engine(config, model=MODELS["llama"])
    single = run_engine(config | {"gradient_accumulation_steps": GLOBAL_BATCH}, processes=1, model=MODELS["llama"])
    assert single.losses == pytest.approx(double.losses, rel=0, abs=LOSS_TOLERANCE)
    assert list(double.losses) == sorted(double.losses, reverse=True)


def test_measured_bytes_are_those_of_the_engine() -> None:
    """The walk finds ZeRO-2's states: bf16 weights whole, and half of the fp32 master, of Adam's two moments."""
    run = measured(zero=2)
    parameters = sum(run.trainable_numels)
    padding_bytes = 4 * 4  # flat buffers are padded to 2 elements a rank, here 2 x 2
    for rank in run.ranks:
        held = rank.held_bytes["step"]
        assert held["weights"] == pytest.approx(2 * parameters, abs=padding_bytes)
        assert held["master"] == pytest.approx(4 * parameters // 2, abs=padding_bytes)
        assert held["moments"] == pytest.approx(8 * parameters // 2, abs=2 * padding_bytes)
        assert sum(held.values()) <= rank.peak_bytes["step"]


def test_checkpointed_layers_keep_less() -> None:
    """Layers that recompute keep their inputs alone: forward's peak falls by more than 10 bf16 tensors a layer.

    Of four layers three count: the one at work has its tensors either way.
    """
    kept, recomputed = measured(zero=2), measured(zero=2, checkpointing="full")
    tensor_bytes = 2 * SEQUENCE_TOKENS * LLAMA["hidden_size"]  # one sequence in bf16
    for plain, sparing in zip(kept.ranks, recomputed.ranks, strict=True):
        assert plain.peak_bytes["forward"] - sparing.peak_bytes["forward"] > 3 * 10 * tensor_bytes


def test_a_bad_configuration_is_reported() -> None:
    """A failing engine ends the test with DeepSpeed's own words, not with a hang."""
    config = planned(zero=2).ds_config
    with pytest.raises(AssertionError, match="no_such_key"):
        run_engine({**config, "zero_optimization": {"stage": 2, "no_such_key": 1}})
