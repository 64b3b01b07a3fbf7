"""planner/sensitivity.py: scenarios, decisions solved again, and what keeping the old one costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from trainplan import api
from trainplan.api.searching import search
from trainplan.planner.decide import Search, decide
from trainplan.planner.request import Request
from trainplan.planner.sensitivity import Outcome, Scenario, Sensitivity, outcome, scenarios, sensitivity, stressed
from trainplan.planner.stress import AS_ASSUMED, Stress

MODEL = "SmolLM2-360M"
ADVERSE = [s.name for s in scenarios() if s.name != "price-down"]


def searcher(name: str) -> Callable[[Request, Stress, float], Search]:
    """Explores a model's request anew."""
    model = api.load_model(name)
    return lambda wanted, stress, most: search(model, wanted, lambda _: None, wanted.allowed, stress, most_usd=most)


@cache
def searched(name: str = MODEL, **options: Any) -> Search:
    """A request explored as assumed."""
    return searcher(name)(api.request(**options), AS_ASSUMED, float("inf"))


def case(stress: Stress) -> Scenario:
    """A scenario of one's own."""
    return Scenario(name="x", label="x", stress=stress, why="", kind="assumed", source="", date="")


def answer(search: Search, stress: Stress) -> Outcome:
    """One scenario's outcome."""
    return outcome(case(stress), search, decide(search), searcher(search.model.name))


@cache
def found(**options: Any) -> Sensitivity:
    """All scenarios of a request."""
    search = searched(**options)
    return sensitivity(search, searcher(MODEL))


def test_scenarios_are_data_with_sources() -> None:
    """Names are unique; each scales something, says why, and what kind of figure its factor is."""
    every = scenarios()
    assert len({s.name for s in every}) == len(every) >= 5
    assert all(s.stress != AS_ASSUMED and s.why and s.source and s.date for s in every)
    assert {s.kind for s in every} <= {"measured", "derived", "fitted", "assumed"}


def test_the_issue_is_covered() -> None:
    """MFU -25 %, price +-20 %, tokens +10 %, failures x2."""
    factors = {s.name: s.stress for s in scenarios()}
    assert factors["mfu"] == Stress(kernel_rate=0.75)
    assert (factors["price-up"], factors["price-down"]) == (Stress(price=1.2), Stress(price=0.8))
    assert (factors["tokens"], factors["failures"]) == (Stress(tokens=1.1), Stress(failures=2.0))


def test_all_that_is_worse_is_all_of_it() -> None:
    """The last scenario holds every adverse factor of the others and no other."""
    *others, last = scenarios()
    for factor in ("kernel_rate", "internode", "price", "tokens", "failures"):
        adverse = {getattr(s.stress, factor) for s in others if s.name in ADVERSE} - {1.0}
        assert {getattr(last.stress, factor)} == adverse


def test_nothing_changes_as_assumed() -> None:
    """Factors of 1: the same decision at the same bill, and keeping it costs nothing."""
    search = searched(gpus="a100-80")
    o = answer(search, AS_ASSUMED)
    chosen = decide(search)[0]
    assert o.holds
    assert o.regret_usd == pytest.approx(0.0, abs=1e-9)
    assert o.candidate is not None
    assert (o.candidate.cost, o.candidate.stack.names) == (chosen.cost, chosen.stack.names)


@pytest.mark.parametrize("factor", [0.5, 1.2, 3.0])
def test_prices_scale_the_bill(factor: float) -> None:
    """The same plan at s times the dollars and in the same hours."""
    search = searched(gpus="a100-80")
    o, chosen = answer(search, Stress(price=factor)), decide(search)[0]
    assert o.holds
    assert o.candidate is not None
    assert o.candidate.cost.usd == pytest.approx(factor * chosen.cost.usd, rel=1e-12)
    assert o.candidate.cost.hours == chosen.cost.hours


def test_tokens_are_whole_steps() -> None:
    """A tenth more tokens is the steps that these fill, rounded up."""
    search = searched(gpus="a100-80", tokens=10**9)
    o, chosen = answer(search, Stress(tokens=1.1)), decide(search)[0]
    assert o.candidate is not None
    assert (chosen.setting.workload.steps, o.candidate.setting.workload.steps) == (954, 1050)  # / 2^20, rounded up
    assert o.candidate.cost.run.steps_h == pytest.approx(chosen.cost.run.steps_h * 1050 / 954, rel=1e-12)
    assert 1 < o.candidate.cost.usd / chosen.cost.usd < 1050 / 954  # the start-up is paid once


def test_slower_kernels_lower_the_mfu() -> None:
    """A step takes up to 4/3 of the time, launches and links as long as before; MFU is against the datasheet's peak."""
    search = searched(gpus="1xa100-80")
    o, chosen = answer(search, Stress(kernel_rate=0.75)), decide(search)[0]
    slower = o.kept.time.step_s / chosen.time.step_s
    assert 1.2 < slower <= 4 / 3 * (1 + 1e-9)
    assert o.holds
    assert o.to_dict()["mfu"] == pytest.approx(found(gpus="1xa100-80").to_dict()["mfu"] / slower, rel=1e-9)


def test_keeping_never_pays() -> None:
    """Where the old decision breaks no limit and the method stays, the new one is no dearer."""
    for o in found(gpus="a100-80,h100", deadline="30h").outcomes:
        if o.regret_usd is not None:
            assert o.regret_usd >= -1e-6 * o.kept.cost.usd


def test_a_broken_deadline_changes_the_decision() -> None:
    """A deadline just above the plan's hours: a tenth more tokens break it, more or other GPUs meet it."""
    hours = decide(searched(gpus="a100-80"))[0].cost.hours
    search = searched(gpus="a100-80", deadline=3600 * hours * 1.05)
    o = answer(search, Stress(tokens=1.1))
    assert o.breaks
    assert o.breaks[0].startswith("deadline short by ")
    assert o.regret_usd is None
    assert o.candidate is not None
    assert o.candidate.cost.hours * 3600 <= search.limits.deadline_s
    assert "number of GPUs" in o.changed or "machine" in o.changed


def test_nothing_fits() -> None:
    """A budget that pays for the plan and not for a dearer one: no plan, and by how much the budget is short."""
    usd = decide(searched(gpus="1xa100-80", method="full"))[0].cost.usd
    search = searched(gpus="1xa100-80", method="full", budget=1.1 * usd)
    o = answer(search, Stress(price=1.2))
    assert o.candidate is None
    assert not o.holds
    assert o.stops.startswith("budget short by $")
    assert answer(search, Stress(price=1.05)).holds


def test_a_smaller_budget_changes_the_method() -> None:
    """What the budget no longer pays for is given up, and regret between methods is none."""
    full = decide(searched("llama-3-8b", gpus="a100-80", method="full"))[0].cost.usd
    search = searched("llama-3-8b", gpus="a100-80", budget=1.1 * full)
    o = answer(search, Stress(price=1.2))
    assert o.candidate is not None
    assert o.candidate.method.value != "full"
    assert "method" in o.changed
    assert o.regret_usd is None


def test_the_space_is_explored_anew_only_where_it_must_be() -> None:
    """Prices use the explored columns; nothing else does."""
    calls: list[Stress] = []
    search = searched(gpus="a100-80")

    def spy(wanted: Request, stress: Stress, most: float) -> Search:
        calls.append(stress)
        return searcher(MODEL)(wanted, stress, most)

    for scenario in scenarios():
        stressed(search, search.request, scenario.stress, spy)
    assert {"kernel_rate": 0.75, "internode": 0.5}.items() <= {
        "kernel_rate": min(s.kernel_rate for s in calls),
        "internode": min(s.internode for s in calls),
    }.items()
    assert len(calls) == sum(not s.stress.keeps_order for s in scenarios()) == 5
