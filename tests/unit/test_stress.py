"""planner/stress.py: factors on the inputs of a search."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainplan.planner.efficiency import value
from trainplan.planner.hardware import Tier
from trainplan.planner.stress import AS_ASSUMED, Stress
from trainplan.planner.terms import Terms
from trainplan.planner.upkeep import between_failures_h, upkeep
from trainplan.planner.workload import Workload

from ..tiny import llama, machines

WORKLOAD = Workload(model=llama(), tokens=10**9, seq_len=1024, global_batch=8)


def test_nothing_changes_as_assumed() -> None:
    """Factors of 1 leave the offer the very same object."""
    offer = machines()
    assert AS_ASSUMED.offer(offer) is offer


def test_kernels_slow_down_alone() -> None:
    """FLOP/s and GPU memory bandwidth are scaled; capacity, links, host and price are what they were."""
    offer = machines()
    found = Stress(kernel_rate=0.75).offer(offer)
    gpu, before = found.node.gpu, offer.node.gpu
    assert before.bf16_flop_per_s is not None
    assert gpu.bf16_flop_per_s == 0.75 * before.bf16_flop_per_s
    assert gpu.memory_bandwidth_bytes_per_s == 0.75 * before.memory_bandwidth_bytes_per_s
    assert (gpu.memory_bytes, gpu.link_bytes_per_s, gpu.host_link_bytes_per_s) == (
        before.memory_bytes,
        before.link_bytes_per_s,
        before.host_link_bytes_per_s,
    )
    assert (found.usd_per_hour, found.node.internode_bytes_per_s) == (
        offer.usd_per_hour,
        offer.node.internode_bytes_per_s,
    )


def test_prices_and_failures_keep_the_node() -> None:
    """A node that stays as it is stays the same object: caches are keyed by it."""
    offer = machines(usd=2.0)
    found = Stress(price=1.2, failures=2.0).offer(offer)
    assert found.node is offer.node
    assert found.usd_per_hour == pytest.approx(1.2 * 4.0)


def test_prices_are_all_prices() -> None:
    """Storage and egress too; what is unknown stays unknown, and amounts are no prices."""
    terms = Terms(storage_usd_per_gib_month=0.1, storage_gib=500, egress_gib=20, billing_step_hours=24)
    found = Stress(price=2).offer(replace(machines(), terms=terms)).terms
    assert found == replace(terms, storage_usd_per_gib_month=0.2)


def test_unknown_networks_stay_unknown() -> None:
    """Half of unknown is unknown."""
    offer = machines()
    unknown = replace(offer, node=replace(offer.node, internode_bytes_per_s=None))
    assert Stress(internode=0.5).offer(unknown).node.internode_bytes_per_s is None
    assert Stress(internode=0.5).offer(offer).node.internode_bytes_per_s == 6.25e9


def test_failures_reach_the_run() -> None:
    """Twice as often: half of the hours between failures, on spot those between interruptions too."""
    twice = Stress(failures=2).workload(WORKLOAD)
    assert AS_ASSUMED.workload(WORKLOAD) is WORKLOAD
    for tier in (Tier.ON_DEMAND, Tier.SPOT):
        before, after = (upkeep(w, machines().node, 8, tier) for w in (WORKLOAD, twice))
        assert after.between_failures_h == pytest.approx(before.between_failures_h / 2, rel=1e-12)
        assert after.least_stretch > before.least_stretch


def test_a_stated_interval_takes_the_assumed_ones_place() -> None:
    """Of one spot node; other tiers have none."""
    known = value("spot", "hours_between_interruptions")
    assert between_failures_h(8, 1, Tier.SPOT, None, known) == between_failures_h(8, 1, Tier.SPOT)
    assert between_failures_h(8, 1, Tier.SPOT, None, 100.0) > between_failures_h(8, 1, Tier.SPOT)
    assert between_failures_h(8, 1, Tier.ON_DEMAND, None, 0.1) == between_failures_h(8, 1, Tier.ON_DEMAND)


@pytest.mark.parametrize(
    ("stress", "keeps"),
    [
        (AS_ASSUMED, True),
        (Stress(price=0.5), True),
        (Stress(price=0.5, tokens=1.1), False),
        (Stress(failures=2), False),
        (Stress(kernel_rate=0.75), False),
        (Stress(internode=2), False),
    ],
)
def test_what_keeps_the_order(stress: Stress, keeps: bool) -> None:
    """Prices may be applied to a space that is explored already; nothing else may."""
    assert stress.keeps_order is keeps
