"""Bills that are no line in hours: their laws, and that the plan under them is still the cheapest of all."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.billing import bill, bill_usd, least_usd
from trainplan.planner.choose import best
from trainplan.planner.hardware import Offer
from trainplan.planner.program import Limits, Objective
from trainplan.planner.search import Demand, explore
from trainplan.planner.terms import Terms
from trainplan.planner.workload import Method

from ..tiny import machines
from .test_search_laws import (
    MARKETS,
    MAX_GPUS,
    WORKLOAD,
    all_families,
    every_candidate,
    limit_sets,
    measure,
)
from .test_search_laws import within as within_limits

HOURS = st.floats(0.01, 20_000)
STEPS = st.none() | st.sampled_from([1.0, 24.0, 168.0])
TERMS = st.builds(
    Terms,
    minimum_hours=st.sampled_from([0.0, 1.0, 72.0]),
    billing_step_hours=STEPS,
    commitment_hours=st.none() | st.sampled_from([720.0, 8766.0]),
    minimum_nodes=st.integers(1, 4),
    upfront=st.booleans(),
    storage_usd_per_gib_month=st.none() | st.just(0.02),
    egress_usd_per_gib=st.none() | st.just(0.09),
    storage_gib=st.none() | st.floats(0, 1e6),
    egress_gib=st.none() | st.floats(0, 1e6),
) | st.builds(Terms, billing_step_hours=st.just(24.0), long_after_hours=st.just(336.0), long_step_hours=st.just(168.0))


@given(terms=TERMS, nodes=st.integers(1, 64), hours=HOURS, more=HOURS)
def test_more_hours_and_more_nodes_never_cost_less(terms: Terms, nodes: int, hours: float, more: float) -> None:
    """Monotone in both."""
    offer = replace(machines(), terms=terms)
    before = bill_usd(offer, nodes, hours)
    assert bill_usd(offer, nodes, hours + more) >= before * (1 - 1e-12)
    assert bill_usd(offer, nodes + 1, hours) >= before


@given(terms=TERMS, nodes=st.integers(1, 64), hours=HOURS)
def test_no_bill_is_below_the_rate(terms: Terms, nodes: int, hours: float) -> None:
    """At least rate x nodes x hours; the lines add up to the bill, and upfront is never more than it."""
    offer = replace(machines(), terms=terms)
    found = bill(offer, nodes, hours)
    assert found.usd >= least_usd(offer, nodes, hours) * (1 - 1e-12)
    assert found.usd == pytest.approx(sum(line.usd for line in found.lines), rel=1e-9)
    assert 0 <= found.upfront_usd <= found.usd
    assert (found.upfront_usd > 0) == terms.upfront


@given(hours=HOURS, step=st.sampled_from([1.0, 24.0, 168.0]))
def test_steps_are_whole(hours: float, step: float) -> None:
    """Whole days (hours, weeks), the fewest that hold the run."""
    billed = Terms(billing_step_hours=step).billed_hours(hours)
    assert round(billed / step) == pytest.approx(billed / step, rel=1e-9)
    assert hours <= billed < hours + step


DAYS = Terms(billing_step_hours=24)
BILLED: dict[str, tuple[Terms, ...]] = {
    "whole days": (DAYS, DAYS),
    "days against pro rata": (DAYS, Terms()),
    "commitment against hours": (Terms(commitment_hours=30), Terms(billing_step_hours=1)),
    "two nodes at least": (Terms(minimum_nodes=2, billing_step_hours=5), Terms(minimum_hours=12)),
    "egress": (Terms(egress_gib=100, egress_usd_per_gib=0.1), Terms(billing_step_hours=6)),
    "short stays only": (Terms(maximum_hours=6), Terms(billing_step_hours=24, maximum_hours=9)),
}


@cache
def market(terms: str, name: str) -> tuple[Offer, ...]:
    """A market of the search's tests whose offers are billed under these terms."""
    return tuple(replace(o, terms=t) for o, t in zip(MARKETS[name], BILLED[terms], strict=True))


def sold(offer: Offer, nodes: int, hours: float) -> bool:
    """Whether so many nodes are let for so long."""
    terms = offer.terms
    longest = float("inf") if terms.maximum_hours is None else terms.maximum_hours
    return nodes >= terms.minimum_nodes and hours <= longest


@pytest.mark.parametrize("terms", BILLED)
@pytest.mark.parametrize("name", ["roomy", "checkpoint"])
def test_the_plan_is_brute_force_under_exact_bills(terms: str, name: str) -> None:
    """No candidate's exact bill is below the plan's, under any limits, though the program's dollars begin as a line."""
    offers, members = market(terms, name), all_families((Method.FULL,))
    every = [c for c in every_candidate(offers, members, MAX_GPUS) if sold(c.offer, c.setting.nodes, c.cost.hours)]
    space = explore(WORKLOAD, offers, members, Demand(max_gpus=MAX_GPUS))
    for limits in limit_sets(every) if every else (Limits(max_gpus=MAX_GPUS),):
        admitted = [c for c in every if within_limits(c, limits)]
        for objective in (Objective.COST, Objective.TIME):
            found = best(space, limits, objective)
            if not admitted:
                assert found is None
                continue
            assert found is not None
            assert sold(found[0].offer, found[0].setting.nodes, found[0].cost.hours)
            assert measure(found[0], objective) == pytest.approx(min(measure(c, objective) for c in admitted), rel=2e-6)
            if objective is Objective.COST:
                # where a longest stay forbids the quickest point, the bill's line is touched beside the chosen one
                assert found[1].certificate.value <= found[0].cost.usd * (1 + 2e-6)
                assert found[1].certificate.value == pytest.approx(found[0].cost.usd, rel=2e-5)


def test_the_terms_bind() -> None:
    """Between them the terms change hours billed, nodes and the choice itself: the test above tests something."""
    chosen: set[object] = set()
    for terms in BILLED:
        for name in ("roomy", "checkpoint"):
            space = explore(WORKLOAD, market(terms, name), all_families((Method.FULL,)), Demand(max_gpus=MAX_GPUS))
            found = best(space, Limits(max_gpus=MAX_GPUS))
            if found is None:
                chosen.add("none")
                continue
            c = found[0]
            hours = c.cost.hours
            chosen.add(("paid and not used", c.offer.terms.billed_hours(hours) > hours * 1.01))
            chosen.add(("nodes", c.setting.nodes))
    assert {("paid and not used", True), ("paid and not used", False), ("nodes", 1), ("nodes", 2)} <= chosen
