"""planner/checkpoint.py: what is written, by whom."""

from __future__ import annotations

import pytest
from trainplan.planner.checkpoint import Checkpoint, checkpoint
from trainplan.planner.states import trained_tensors
from trainplan.planner.transform import Strategy
from trainplan.strategies.lora import Lora
from trainplan.strategies.offload_optimizer import OffloadOptimizer
from trainplan.strategies.zero import Zero

from ..tiny import folded, setting

N = trained_tensors(setting().model, None).total


def written(*strategies: Strategy, ranks: int = 4) -> Checkpoint:
    """The checkpoint of a stack on one node."""
    at = setting(ranks=ranks)
    return checkpoint(folded(*strategies, at=at), at)


def test_by_stage() -> None:
    """2 N weights, 2 N again below stage 3, 12 N states: by rank 0 at stage 0, by slices from stage 1 on."""
    for stage in range(4):
        saved = written(Zero(stage))
        assert saved.weights_bytes == 2 * N
        assert saved.module_bytes == (0 if stage == 3 else 2 * N)
        assert saved.states_bytes == pytest.approx(12 * N, rel=1e-3)  # slices are padded
        assert saved.sharded == (stage > 0)
        assert saved.total_bytes == saved.alone_bytes + saved.parallel_bytes
    assert written(Zero(0)).parallel_bytes == 0
    assert written(Zero(3)).alone_bytes == 2 * N


def test_where_states_live_does_not_matter() -> None:
    """Offloaded states are as many bytes."""
    assert written(Zero(3), OffloadOptimizer()).states_bytes == written(Zero(3)).states_bytes


def test_adapters_alone_are_written() -> None:
    """The frozen base is left out."""
    at = setting(ranks=4)
    ledger = folded(Lora(), Zero(2), at=at)
    saved = checkpoint(ledger, at)
    assert saved.weights_bytes == saved.module_bytes == 2 * ledger.trainable.total
    assert saved.total_bytes < 2 * N
