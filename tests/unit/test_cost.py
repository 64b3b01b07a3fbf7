"""planner/cost.py: hours, dollars and electricity of a run, and lines below them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trainplan.planner.checkpoint import Checkpoint
from trainplan.planner.cost import least_line, run_cost, run_cost_usd, tangent
from trainplan.planner.efficiency import figures
from trainplan.planner.hardware import Offer, Tier
from trainplan.planner.workload import RunOptions, Workload

from ..tiny import llama, machines

WORKLOAD = Workload(model=llama(), tokens=1000 * 16 * 2048, seq_len=2048, global_batch=16)  # 1000 steps
OFFER = machines(gpus=8, usd=20.0)
SAVED = Checkpoint(weights_bytes=10**9, module_bytes=0, states_bytes=6 * 10**9, sharded=True)


def test_nodes_are_billed_whole() -> None:
    """Three nodes at $20 for five hours."""
    assert run_cost_usd(OFFER, 3, 5.0) == OFFER.usd_per_hour * 3 * 5


def test_cost_adds_up() -> None:
    """Node-hours, GPU-hours, dollars and the price of a million tokens follow from the hours of the run."""
    cost = run_cost(WORKLOAD, OFFER, 2, 36.0, SAVED)
    assert cost.hours == cost.run.hours > 10
    assert cost.node_hours == 2 * cost.hours
    assert cost.gpu_hours == 16 * cost.hours
    assert cost.usd == pytest.approx(OFFER.usd_per_hour * cost.node_hours)
    assert cost.usd_per_million_tokens == pytest.approx(cost.usd / (1000 * 16 * 2048 / 1e6))


def test_emissions_need_the_users_factor() -> None:
    """No factor, no emissions; with one they are proportional to the electricity."""
    assert run_cost(WORKLOAD, OFFER, 1, 36.0, SAVED).kgco2 is None
    told = replace(WORKLOAD, run=RunOptions(grid_kgco2_per_kwh=0.5))
    cost = run_cost(told, OFFER, 1, 36.0, SAVED)
    assert cost.kwh
    assert cost.kgco2 == pytest.approx(cost.kwh / 2)


def test_spot_takes_longer() -> None:
    """Interruptions come on top of failures."""
    spot: Offer = replace(OFFER, tier=Tier.SPOT)
    assert run_cost(WORKLOAD, spot, 1, 36.0, SAVED).hours > run_cost(WORKLOAD, OFFER, 1, 36.0, SAVED).hours


@given(price=st.floats(0.01, 1e4), nodes=st.integers(1, 4096), step_s=st.floats(1e-3, 1e4))
def test_doubling_the_price_doubles_the_cost(price: float, nodes: int, step_s: float) -> None:
    """Cost is proportional to the price, and hours do not depend on it."""
    once, twice = (run_cost(WORKLOAD, replace(OFFER, usd_per_hour=p), nodes, step_s, SAVED) for p in (price, 2 * price))
    assert twice.usd == pytest.approx(2 * once.usd)
    assert twice.hours == once.hours


CHECKPOINTS = st.builds(
    Checkpoint,
    weights_bytes=st.integers(1, 10**12),
    module_bytes=st.integers(0, 10**12),
    states_bytes=st.integers(0, 10**13),
    sharded=st.booleans(),
)
OPTIONS = st.builds(
    RunOptions,
    checkpoint_every_s=st.none() | st.floats(1, 1e6),
    storage_bytes_per_s=st.none() | st.floats(1e8, 1e13),
    mtbf_gpu_hours=st.none() | st.floats(1e3, 1e7),
)


@given(
    saved=CHECKPOINTS,
    options=OPTIONS,
    nodes=st.integers(1, 64),
    tier=st.sampled_from((Tier.ON_DEMAND, Tier.SPOT)),
    step_s=st.floats(0.01, 1e4),
    longer=st.floats(1.0, 100.0),
)
def test_lines_stay_below_the_bill(
    saved: Checkpoint, options: RunOptions, nodes: int, tier: Tier, step_s: float, longer: float
) -> None:
    """The program's line touches the bill at its step and is never above it at a longer one; the floor never is."""
    told, offer = replace(WORKLOAD, run=options), replace(OFFER, tier=tier)
    line, floor = tangent(told, offer, nodes, saved, step_s), least_line(told, offer, nodes)
    here = run_cost(told, offer, nodes, step_s, saved)
    there = run_cost(told, offer, nodes, step_s * longer, saved)
    assume(there.run.goodput > 1e-6)  # hours of runs that never end are cut off, and such columns are not searched
    assert line.usd_at(step_s) == pytest.approx(here.usd, rel=1e-9)
    assert line.run_s_at(step_s) == pytest.approx(here.hours * 3600, rel=1e-9)
    assert line.usd_at(step_s * longer) <= there.usd * (1 + 1e-9)
    assert floor.usd_at(step_s) <= here.usd * (1 + 1e-9)
    assert floor.run_s_at(step_s * longer) <= there.hours * 3600 * (1 + 1e-9)


def test_every_constant_has_a_source_and_a_kind() -> None:
    """Each row is positive and says how it is known, and from where; no table stands in two files."""
    for table, rows in figures().items():
        for name, figure in rows.items():
            where = f"{table}.{name}"
            assert figure.value > 0, where
            assert figure.kind in {"measured", "derived", "fitted", "datasheet", "assumed"}, where
            assert len(figure.source) > 10 or figure.source == "as hopper", where
            assert figure.date[:2] == "20", where
