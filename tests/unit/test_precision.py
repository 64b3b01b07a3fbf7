"""strategies/precision.py: bytes of weights, gradients, activations."""

from __future__ import annotations

import pytest
from trainplan.planner.ledger import Item
from trainplan.planner.workload import Precision as Kind
from trainplan.strategies.precision import Precision
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama

N = llama().parameter_count


@pytest.mark.parametrize("kind", [Kind.BF16, Kind.FP16])
def test_16_bit_keeps_a_master(kind: Kind) -> None:
    """2 N weights and gradients, 4 N master; its section is enabled."""
    ledger = folded(Precision(kind), Zero(0))
    assert [ledger.bytes_of(x) for x in (Item.WEIGHTS, Item.GRADIENTS, Item.MASTER)] == [2 * N, 2 * N, 4 * N]
    assert ledger.deepspeed[kind.value] == {"enabled": True}


def test_fp32_is_its_own_master_at_stage_0() -> None:
    """4 N weights and gradients; no section."""
    ledger = folded(Precision(Kind.FP32), Zero(0))
    assert [ledger.bytes_of(x) for x in (Item.WEIGHTS, Item.GRADIENTS, Item.MASTER)] == [4 * N, 4 * N, 0]
    assert not {"bf16", "fp16"} & set(ledger.deepspeed)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fp32_has_a_second_copy_where_states_are_cut(stage: int) -> None:
    """DeepSpeed clones the slice: 4 bytes an element more, although weights are fp32 already."""
    assert folded(Precision(Kind.FP32), Zero(stage)).bytes_of(Item.MASTER) >= 4 * N // 2
