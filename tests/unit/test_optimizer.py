"""strategies/optimizer.py: states per trained element, and how DeepSpeed is told."""

from __future__ import annotations

import pytest
from trainplan.planner.ledger import Item
from trainplan.planner.recipe import LEARNING_RATE
from trainplan.strategies.lora import Lora
from trainplan.strategies.optimizer import OPTIMIZERS, Optimizer
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

STATES = {"adamw": 8, "adamw-8bit": 2.03125, "paged-adamw-8bit": 2.03125, "lion": 4, "adafactor": 4, "sgd": 0}


@pytest.mark.parametrize("name", STATES)
def test_bytes_of_the_states(name: str) -> None:
    """Moments follow the optimizer; the fp32 master does not."""
    at = setting(ranks=1)
    ledger = folded(Optimizer(name), Zero(1), at=at)
    n = llama().parameter_count
    assert ledger.bytes_of(Item.MOMENTS) == round(STATES[name] * n)
    assert ledger.bytes_of(Item.MASTER) == 4 * n


def test_the_table_is_complete() -> None:
    """Every optimizer has a hand-written figure here, and a source."""
    assert set(STATES) == set(OPTIMIZERS)
    assert all(kind.source for kind in OPTIMIZERS.values())


@pytest.mark.parametrize("name", STATES)
def test_untrusted_optimizers_are_declared(name: str) -> None:
    """DeepSpeed refuses an optimizer it does not know unless zero_allow_untested_optimizer is set."""
    keys = folded(Optimizer(name)).deepspeed
    assert keys.get("zero_allow_untested_optimizer", False) is (name not in ("adamw", "lion"))
    assert ("optimizer" in keys) is not name.endswith("8bit")


def test_adapters_learn_faster() -> None:
    """Adapters start from zero and take a higher rate."""
    full, adapters = (folded(*s, Optimizer()).deepspeed["optimizer"]["params"] for s in ((), (Lora(),)))
    assert (full["lr"], adapters["lr"]) == (LEARNING_RATE[False], LEARNING_RATE[True])
    assert adapters["weight_decay"] == 0.0
