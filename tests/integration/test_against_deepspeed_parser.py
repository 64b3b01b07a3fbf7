"""DeepSpeed's own parser accepts the configurations for the planned number of ranks, and ignores none of their keys."""

from __future__ import annotations

from typing import Any

import pytest
from trainplan.planner.emit.deepspeed import TOP_LEVEL

from .configurations import CONFIGURATIONS
from .deepspeed_parser import known_top_level_keys, parse, unknown_keys

pytestmark = pytest.mark.deepspeed

WORLD_SIZES = (1, 8, 64, 1000)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_deepspeed_accepts(name: str, world_size: int) -> None:
    """Parsing succeeds and the batch is micro-batch x accumulation x ranks."""
    ds_config = CONFIGURATIONS[name]
    parsed = parse(ds_config, world_size)
    micro, micros = ds_config["train_micro_batch_size_per_gpu"], ds_config["gradient_accumulation_steps"]
    assert parsed.train_batch_size == micro * micros * world_size
    assert parsed.zero_config.stage == ds_config["zero_optimization"]["stage"]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_deepspeed_reads_every_key(name: str) -> None:
    """No key is ignored."""
    assert unknown_keys(CONFIGURATIONS[name]) == set()


def test_the_emitter_writes_known_keys_only() -> None:
    """Each top-level key that a plan may write is one that DeepSpeed's parser asks for."""
    assert set(TOP_LEVEL) <= known_top_level_keys()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"gradient_acumulation_steps": 4}, {"gradient_acumulation_steps"}),
        ({"activation_checkpointing": {"cpu_checkpointing": True, "foo": 1}}, {"activation_checkpointing.foo"}),
        ({"aio": {"block_size": 1_048_576, "thread_count": 1}}, {"aio.thread_count"}),
        ({"data_types": {"grad_accum_dtype": "fp32", "grad_acc_dtype": "fp32"}}, {"data_types.grad_acc_dtype"}),
        ({"tensorboard": {"enabled": False}, "checkpoint": {"load_universal": True}}, set()),
    ],
)
def test_ignored_keys_are_found(extra: dict[str, Any], expected: set[str]) -> None:
    """A misspelt key is reported; one that DeepSpeed knows is not."""
    assert unknown_keys(CONFIGURATIONS["zero2"] | extra) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}, "reduce_bucket"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "Partial offloading",
        ),
        ({"train_batch_size": 9}, "Check batch related parameters"),
        ({"amp": {"enabled": True}}, "AMP"),
    ],
)
def test_refusals_are_deepspeeds(change: dict[str, Any], words: str) -> None:
    """What DeepSpeed refuses is refused here: the stand-in for the process group hides nothing."""
    with pytest.raises(Exception, match=words):
        parse(CONFIGURATIONS["zero2"] | change, world_size=2)
