"""planner/stress.py: factors on the inputs of a search."""

from __future__ import annotations

import pytest
from trainplan.planner.cost import goodput, run_cost
from trainplan.planner.efficiency import value
from trainplan.planner.hardware import Tier
from trainplan.planner.stress import AS_ASSUMED, Stress
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
    assert found.failures == 2.0


def test_unknown_networks_stay_unknown() -> None:
    """Half of unknown is unknown."""
    from dataclasses import replace

    offer = machines()
    unknown = replace(offer, node=replace(offer.node, internode_bytes_per_s=None))
    assert Stress(internode=0.5).offer(unknown).node.internode_bytes_per_s is None
    assert Stress(internode=0.5).offer(offer).node.internode_bytes_per_s == 6.25e9


def test_failures_reach_the_bill() -> None:
    """Twice the failures: 1 + 2 G lost / MTBF instead of 1 + G lost / MTBF, by hand."""
    offer = machines()
    lost = 16 * value("goodput", "hours_lost_per_failure") / value("goodput", "gpu_hours_between_failures")
    before, after = (run_cost(WORKLOAD, o, 8, 1.0).usd for o in (offer, Stress(failures=2).offer(offer)))
    assert after / before == pytest.approx((1 + 2 * lost) / (1 + lost), rel=1e-12)


def test_interruptions_are_failures_too() -> None:
    """On spot both happen more often; a stated interval takes the assumed one's place."""
    assert goodput(8, Tier.SPOT, failures=2) < goodput(8, Tier.SPOT) < goodput(8, Tier.SPOT, interruption_h=100)
    assumed = value("spot", "hours_between_interruptions")
    assert goodput(8, Tier.SPOT, interruption_h=assumed) == goodput(8, Tier.SPOT)
    assert goodput(8, interruption_h=0.1) == goodput(8)


@pytest.mark.parametrize(
    ("stress", "keeps"),
    [
        (AS_ASSUMED, True),
        (Stress(price=0.5, tokens=3, failures=2), True),
        (Stress(failures=0.5), False),
        (Stress(kernel_rate=0.75), False),
        (Stress(internode=2), False),
    ],
)
def test_what_keeps_the_order(stress: Stress, keeps: bool) -> None:
    """Prices, tokens and more failures may be applied to a space that is explored already; nothing else may."""
    assert stress.keeps_order is keeps
