"""What the answers to a reviewer rest on: a space explored once serves other prices."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.planner.choose import best
from trainplan.planner.program import Limits
from trainplan.planner.rebill import rebilled
from trainplan.planner.search import Demand, explore
from trainplan.planner.stress import Stress
from trainplan.planner.workload import Method

from .test_search_laws import MARKETS, MAX_GPUS, WORKLOAD, all_families, explored

FULL = (Method.FULL,)


@pytest.mark.parametrize("market", ["roomy", "checkpoint", "shard"])
@given(price=st.floats(0.1, 10), tight=st.floats(0.2, 3))
@settings(max_examples=15)
def test_a_rebilled_space_is_an_explored_one(market: str, price: float, tight: float) -> None:
    """Under any deadline the best plan of the rebilled space costs what exploring at those prices finds."""
    stress = Stress(price=price)
    offers = [stress.offer(o) for o in MARKETS[market]]
    before = rebilled(explored(market, FULL), WORKLOAD, stress.offer)
    anew = explore(WORKLOAD, offers, all_families(FULL), Demand(max_gpus=MAX_GPUS))
    unlimited = best(anew, Limits(max_gpus=MAX_GPUS))
    assert unlimited is not None
    limits = Limits(max_gpus=MAX_GPUS, deadline_s=tight * unlimited[0].cost.hours * 3600)
    found, expected = best(before, limits), best(anew, limits)
    assert (found is None) == (expected is None)
    if found and expected:
        assert found[0].cost.usd == pytest.approx(expected[0].cost.usd, rel=2e-6)


@pytest.mark.parametrize("market", ["roomy", "shard"])
@given(share=st.floats(0.5, 5))
@settings(max_examples=15)
def test_what_must_break_a_limit_is_no_loss(market: str, share: float) -> None:
    """Leaving out machines whose lower bound breaks the budget never changes the plan within it."""
    cheapest = best(explored(market, FULL), Limits(max_gpus=MAX_GPUS))
    assert cheapest is not None
    budget = share * cheapest[0].cost.usd
    demand = Demand(max_gpus=MAX_GPUS, most_usd=budget)
    within = explore(WORKLOAD, MARKETS[market], all_families(FULL), demand)
    limits = Limits(max_gpus=MAX_GPUS, budget_usd=budget)
    found, expected = best(within, limits), best(explored(market, FULL), limits)
    assert (found is None) == (expected is None)
    if found and expected:
        assert found[0].cost.usd == pytest.approx(expected[0].cost.usd, rel=2e-6)
