"""planner/cost.py: hours and dollars of a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.cost import goodput, run_cost, run_cost_usd, run_hours
from trainplan.planner.efficiency import figures, value
from trainplan.planner.hardware import Gpu, Node, Offer, Tier
from trainplan.planner.model import Model
from trainplan.planner.workload import Workload

MODEL = Model(name="none", family="none", hidden=8, vocab=8, tied=True, embedding=(), blocks=(), head=())
WORKLOAD = Workload(model=MODEL, tokens=1000 * 16 * 2048, seq_len=2048, global_batch=16)  # 1000 steps
GPU = Gpu(
    name="gpu",
    full_name="GPU",
    aliases=(),
    vendor="nvidia",
    architecture="Ampere sm80",
    memory_bytes=1,
    memory_source="",
    memory_bandwidth_bytes_per_s=1e12,
    bf16_flop_per_s=1e14,
    fp16_flop_per_s=None,
    fp32_flop_per_s=None,
    matmul_efficiency=None,
    link="NVLink3",
    link_bytes_per_s=3e11,
    nvswitch=True,
    host_link_bytes_per_s=3e10,
    tdp_w=None,
    sources=(),
)
NODE = Node(gpu=GPU, gpus=8, host_memory_bytes=None, vcpus=96, nvme_bytes=None, internode_bytes_per_s=None)
OFFER = Offer(
    name="cloud/node",
    cloud="cloud",
    instance="node",
    node=NODE,
    usd_per_hour=20.0,
    tier=Tier.ON_DEMAND,
    region="here",
    date="2026-01-01",
    source="test",
)


def test_hours_are_steps_times_seconds_over_goodput() -> None:
    """1000 steps of 36 s are 10 hours of training; overhead and failures come on top."""
    share = (1 - 0.02) / (1 + 8 * 0.31 / 50700)
    assert run_hours(WORKLOAD, 36.0, gpus=8) == pytest.approx(1000 * 36 / 3600 / share)


def test_nodes_are_billed_whole() -> None:
    """Three nodes at $20 for five hours."""
    assert run_cost_usd(OFFER, 3, 5.0) == 20 * 3 * 5


def test_cost_adds_up() -> None:
    """Node-hours, GPU-hours, dollars and the price of a million tokens follow from the hours."""
    cost = run_cost(WORKLOAD, OFFER, 2, 36.0)
    assert cost.hours == run_hours(WORKLOAD, 36.0, gpus=16)
    assert cost.node_hours == 2 * cost.hours
    assert cost.gpu_hours == 16 * cost.hours
    assert cost.usd == pytest.approx(20 * cost.node_hours)
    assert cost.usd_per_million_tokens == pytest.approx(cost.usd / (1000 * 16 * 2048 / 1e6))


def test_the_run_that_gave_the_figures_is_reproduced() -> None:
    """Llama 3 405B on 16,384 GPUs was effective for over 90 % of its time: 0.98 / 1.10 is 89 %, a little cautious."""
    assert 0.87 < goodput(16384) < 0.91


def test_failures_agree_with_their_source() -> None:
    """419 interruptions in 54 days on 16,384 GPUs."""
    assert value("goodput", "gpu_hours_between_failures") == pytest.approx(54 * 24 * 16384 / 419, rel=0.001)
    assert value("goodput", "hours_lost_per_failure") == pytest.approx(0.1 * 54 * 24 / 419, rel=0.01)


def test_spot_takes_longer() -> None:
    """Interruptions cost 0.31 h every 4.3 h on top."""
    assert goodput(8) / goodput(8, Tier.SPOT) == pytest.approx(1 + 0.31 / 4.3, rel=0.001)
    spot = run_cost(WORKLOAD, replace(OFFER, tier=Tier.SPOT), 1, 36.0)
    assert spot.hours > run_cost(WORKLOAD, OFFER, 1, 36.0).hours


@given(price=st.floats(0.01, 1e4), nodes=st.integers(1, 4096), step_s=st.floats(1e-3, 1e4))
def test_doubling_the_price_doubles_the_cost(price: float, nodes: int, step_s: float) -> None:
    """Cost is proportional to the price, and hours do not depend on it."""
    once, twice = (run_cost(WORKLOAD, replace(OFFER, usd_per_hour=p), nodes, step_s) for p in (price, 2 * price))
    assert twice.usd == pytest.approx(2 * once.usd)
    assert twice.hours == once.hours


def test_every_constant_has_a_source_and_a_kind() -> None:
    """Each row of efficiency.toml is positive and says how it is known, and from where."""
    for table, rows in figures().items():
        for name, figure in rows.items():
            where = f"{table}.{name}"
            assert figure.value > 0, where
            assert figure.kind in {"measured", "derived", "fitted", "datasheet", "assumed"}, where
            assert len(figure.source) > 10 or figure.source == "as hopper", where
            assert figure.date[:2] == "20", where
