"""strategies/checkpointing.py: the first k layers keep only their input."""

from __future__ import annotations

from itertools import pairwise

import pytest
from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import Device, Item
from trainplan.planner.transform import Stack
from trainplan.planner.work import Resource, When
from trainplan.strategies.checkpointing import Checkpointing
from trainplan.strategies.zero import Zero

from ..tiny import folded, setting

AT = setting(micro_batch=2, seq_len=128)
INPUT = 2 * 256 * 2 * 128  # bf16, hidden, tokens


@pytest.mark.parametrize("layers", [1, 3, 4])
def test_checkpoints_are_layer_inputs(layers: int) -> None:
    """2 bytes x hidden x tokens for each checkpointed layer."""
    ledger = evaluate(Stack.of(Zero(0), Checkpointing(layers)), AT)
    assert ledger.bytes_of(Item.CHECKPOINTS) == layers * INPUT


def test_each_layer_more_saves_the_same() -> None:
    """What is saved for backward falls in equal steps: the layers are equal."""
    saved = [evaluate(Stack.of(Zero(0), Checkpointing(k)), AT).bytes_of(Item.SAVED) for k in range(1, 5)]
    steps = [a - b for a, b in pairwise(saved)]
    assert steps == [steps[0]] * 3
    assert saved[-1] < steps[0]  # what the layers do not own stays


def test_on_the_host_they_cross_the_link_twice() -> None:
    """Down in forward, up in backward, in every micro-step."""
    ledger = evaluate(Stack.of(Zero(0), Checkpointing(3, on_host=True)), AT)
    assert ledger.bytes_of(Item.CHECKPOINTS) == 0
    assert ledger.bytes_of(Item.CHECKPOINTS, device=Device.HOST) == 3 * INPUT
    moved = {(w.resource, w.when): w.amount for w in ledger.work if "checkpoints" in w.name}
    assert moved == {
        (Resource.GPU_TO_HOST, When.FORWARD): 3 * INPUT,
        (Resource.HOST_TO_GPU, When.BACKWARD): 3 * INPUT,
    }


def test_deepspeeds_own_block_is_not_written() -> None:
    """It does nothing for Hugging Face models."""
    assert "activation_checkpointing" not in folded(Checkpointing(2)).deepspeed


@pytest.mark.parametrize("layers", [0, 5])
def test_k_is_one_of_the_layers(layers: int) -> None:
    """The model has 4."""
    assert "4" in str(Checkpointing(layers).accepts(AT))
    assert Checkpointing(4).accepts(AT) is None
