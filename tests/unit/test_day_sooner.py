"""planner/day_sooner.py: one more solve, a day before the plan's end."""

from __future__ import annotations

from typing import Any

import pytest
from trainplan import api
from trainplan.planner.report.plan_tables import frontier_text


def test_a_day_sooner_is_the_plan_of_a_shorter_deadline() -> None:
    """The same dollars as a plan with the plan's hours less 24 as its deadline."""
    options: dict[str, Any] = {"gpus": "a100-80", "method": "lora"}
    plan = api.plan("70b", **options)
    sooner = plan.day_sooner
    assert sooner is not None
    assert sooner.candidate is not None
    again = api.plan("70b", **options, deadline=(plan.candidate.cost.hours - 24) * 3600).candidate
    assert sooner.candidate.cost.usd == pytest.approx(again.cost.usd, rel=1e-9)
    assert sooner.extra_usd == pytest.approx(again.cost.usd - plan.candidate.cost.usd)
    assert sooner.candidate.cost.hours <= plan.candidate.cost.hours - 24
    assert "this plan a day sooner: +$" in frontier_text(plan.to_dict())


def test_a_run_of_hours_has_no_day_to_save() -> None:
    """The reason is the run's own length."""
    sooner = api.plan("SmolLM2-135M", gpus="1xh100", tokens="10M").day_sooner
    assert sooner is not None
    assert sooner.candidate is None
    assert sooner.note.startswith("the run takes ")


def test_no_machine_is_quicker() -> None:
    """On a fixed count the quickest is named."""
    plan = api.plan("70b", gpus="8xa100-80", method="full", nodes=1)
    sooner = plan.day_sooner
    assert sooner is not None
    assert sooner.candidate is None
    assert sooner.note.startswith("the quickest is $")
    assert "not possible, the quickest is" in frontier_text(plan.to_dict())


def test_over_the_budget_is_said() -> None:
    """A day sooner is priced whatever the budget, and marked where it exceeds it."""
    usd = api.plan("70b", gpus="a100-80", method="lora").candidate.cost.usd
    sooner = api.plan("70b", gpus="a100-80", method="lora", budget=usd * 1.001).day_sooner
    assert sooner is not None
    assert sooner.note == "over the budget"
    assert sooner.to_dict()["gpus"]
