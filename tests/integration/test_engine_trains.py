"""Every class of configuration trains on real engines, and trains the same model as stage 0 does."""

from __future__ import annotations

from typing import Any

import pytest

from .configurations import CONFIGURATIONS, config
from .engine import LOSS_TOLERANCE, EngineRun, Lora, TinyModel, run_engine

pytestmark = pytest.mark.deepspeed

LORA = Lora()
SHARDED = [name for name in CONFIGURATIONS if name != "zero0"]


@pytest.fixture(scope="module")
def reference() -> EngineRun:
    """Stage 0, every weight trained: what the others are compared with."""
    return run_engine(config(stage=0))


@pytest.fixture(scope="module")
def lora_reference() -> EngineRun:
    """Stage 0, adapters only."""
    return run_engine(config(stage=0), lora=LORA)


def assert_same_losses(run: EngineRun, reference: EngineRun) -> None:
    """Same losses step by step, and they fall: a model that does not learn would agree with itself."""
    assert run.losses == pytest.approx(reference.losses, rel=0, abs=LOSS_TOLERANCE)
    assert list(run.losses) == sorted(run.losses, reverse=True)


@pytest.mark.parametrize("name", SHARDED)
def test_sharding_and_offload_do_not_change_training(name: str, reference: EngineRun) -> None:
    """Where states lie changes no loss."""
    assert_same_losses(run_engine(CONFIGURATIONS[name]), reference)


@pytest.mark.parametrize("stage", [0, 3])
def test_checkpointing_the_first_layers_does_not_change_training(stage: int, reference: EngineRun) -> None:
    """Recomputing k of L layers changes no loss, and exactly k layers recompute."""
    run = run_engine(config(stage=stage), checkpoint_layers=3)
    assert run.checkpointed_layers == 3
    assert_same_losses(run, reference)


@pytest.mark.parametrize("stage", [2, 3])
def test_lora_trains_alike_at_every_stage(stage: int, lora_reference: EngineRun) -> None:
    """Adapters train as at stage 0, and only they train."""
    run = run_engine(config(stage=stage), lora=LORA)
    assert_same_losses(run, lora_reference)
    # 4 layers x (q, o: 4 x (128 + 128); k, v: 4 x (128 + 64))
    assert sum(run.trainable_numels) == 4 * (2 * 4 * (128 + 128) + 2 * 4 * (128 + 64))


def test_batch_cut_does_not_change_training(reference: EngineRun) -> None:
    """A global batch of 4 as 2 ranks x 2 micro-steps or as 1 rank x 4 is one batch."""
    single: dict[str, Any] = config(stage=2) | {"gradient_accumulation_steps": 4}
    assert_same_losses(run_engine(single, processes=1), reference)


def test_measured_bytes_are_those_of_the_engine() -> None:
    """The walk finds ZeRO-2's states: bf16 weights whole, and half of the fp32 master, of Adam's two moments."""
    run = run_engine(config(stage=2), measure=True)
    parameters = sum(run.trainable_numels)
    padding_bytes = 4 * 4  # flat buffers are padded to 2 elements a rank, here 2 x 2
    for rank in run.ranks:
        held = rank.held_bytes["step"]
        assert held["weights"] == pytest.approx(2 * parameters, abs=padding_bytes)
        assert held["master"] == pytest.approx(4 * parameters // 2, abs=padding_bytes)
        assert held["moments"] == pytest.approx(8 * parameters // 2, abs=2 * padding_bytes)
        assert sum(held.values()) <= rank.peak_bytes["step"]


def test_checkpointed_layers_keep_less() -> None:
    """Four layers that recompute keep their inputs alone: forward's peak falls by more than 10 bf16 tensors a layer."""
    kept, recomputed = (run_engine(config(stage=2), checkpoint_layers=k, measure=True) for k in (0, 4))
    tensor_bytes = 2 * 64 * 128  # one sequence of 64 tokens, hidden size 128, bf16
    for plain, sparing in zip(kept.ranks, recomputed.ranks, strict=True):
        assert plain.peak_bytes["forward"] - sparing.peak_bytes["forward"] > 4 * 10 * tensor_bytes


def test_another_family_trains() -> None:
    """The harness takes any family of transformers: GPT-2 ties its embeddings and fuses its projections."""
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 256, "n_positions": 128}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # ranks would draw other masks
    gpt2 = TinyModel(family="gpt2", config=shape | no_dropout)
    dense = run_engine(config(stage=0), model=gpt2)
    assert_same_losses(run_engine(config(stage=3), model=gpt2), dense)


def test_a_bad_configuration_is_reported() -> None:
    """A failing engine ends the test with DeepSpeed's own words, not with a hang."""
    with pytest.raises(AssertionError, match="no_such_key"):
        run_engine(config(stage=2, no_such_key=1))
