"""planner/afford.py and planner/sizes.py: the size found has a plan, the next has none."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan import api
from trainplan.api.searching import search
from trainplan.planner.afford import Afford, Answer, afford_model, tokens_per_parameter
from trainplan.planner.decide import Search
from trainplan.planner.errors import InputError, NoPlan
from trainplan.planner.model import Model
from trainplan.planner.models import catalog_model
from trainplan.planner.request import Request
from trainplan.planner.sizes import batches, last, sizes

from ..tiny import llama

SMALL = "SmolLM2-135M"
ONE: dict[str, Any] = {"gpus": "1xh100", "method": "full", "seq_len": 2048}


@cache
def answers(**options: Any) -> dict[str, Answer]:
    """Answers for the small model, by question."""
    return {a.question: a for a in api.afford(SMALL, **{**ONE, **options}).answers}


def searcher(model: Model, asked: Request, within: bool) -> Search:
    """Explores everything, whatever the limits."""
    return search(model, asked, lambda _: None, asked.allowed)


def among(*names: str, **options: Any) -> Afford:
    """The largest of some models."""
    wanted = api.request(**{"gpus": "1xh100", "method": "full", "tokens": "10M", **options})
    return afford_model([catalog_model(name) for name in names], wanted, searcher, lambda _: None)


@pytest.mark.parametrize("budget", [1.0, 7.5, 40.0])
def test_the_most_tokens_fit_and_one_step_more_does_not(budget: float) -> None:
    """Planned anew by the public function: whole steps, within the budget; with one more, no plan."""
    found = answers(budget=budget)["most tokens"]
    assert found.candidate is not None
    workload = found.candidate.setting.workload
    step = workload.global_batch * workload.seq_len
    assert workload.tokens % step == 0
    assert found.candidate.cost.usd <= budget * (1 + 1e-9)
    api.plan(SMALL, **ONE, budget=budget, tokens=workload.tokens)
    with pytest.raises(NoPlan, match="budget"):
        api.plan(SMALL, **ONE, budget=budget, tokens=workload.tokens + step)
    assert found.stops.startswith("budget short by $")
    assert found.next_size == f"{workload.tokens + step:,}"


def test_the_deadline_stops_it() -> None:
    """With money to spare and one hour."""
    found = answers(budget=1e6, deadline="1h")["most tokens"]
    assert found.candidate is not None
    assert found.candidate.cost.hours <= 1
    assert found.stops.startswith("deadline short by ")


def test_either_limit_would_help() -> None:
    """Cheap and slow machines miss the deadline, quick and dear ones the budget: both are said."""
    options: dict[str, Any] = {"gpus": "a100-80", "method": "lora", "tokens": "1B"}
    slow = api.plan("70b", **options).candidate.cost
    deadline = slow.hours * 3600 * 0.99
    found = {a.question: a for a in api.afford("70b", **options, budget=slow.usd * 1.05, deadline=deadline).answers}
    assert re.fullmatch(r"budget short by \$[0-9.,]+, or deadline by .+", found["most tokens"].stops)


def test_a_budget_for_nothing() -> None:
    """Less than one step costs: no plan, and what one step is short of."""
    found = answers(budget=1e-6)
    assert all(a.candidate is None for a in found.values())
    assert found["most tokens"].stops.startswith("budget short by $")


def test_the_whole_context() -> None:
    """A model that fits with all its positions says so."""
    found = answers(budget=1e4)["longest context"]
    assert found.candidate is not None
    assert found.candidate.setting.workload.seq_len == catalog_model(SMALL).max_positions
    assert found.stops == f"{SMALL} has no more positions"


def test_a_context_that_memory_stops() -> None:
    """On a small GPU: a multiple of 1,024 that fits, the next that does not, and which memory is short."""
    options: dict[str, Any] = {"gpus": "1x4090", "method": "full", "budget": 1e5, "deadline": "3650d"}
    found = {a.question: a for a in api.afford("Llama-3.2-1B", **options).answers}["longest context"]
    assert found.candidate is not None
    workload = found.candidate.setting.workload
    assert workload.seq_len % 1024 == 0
    assert found.next_size == f"{workload.seq_len + 1024:,}"
    assert "GPU memory" in found.stops
    assert workload.global_batch == batches(2**20, workload.seq_len)[0]
    longer = workload.seq_len + 1024
    with pytest.raises(NoPlan, match="GPU memory"):
        api.plan("Llama-3.2-1B", **options, seq_len=longer, global_batch=batches(2**20, longer)[-1])


def test_the_largest_model() -> None:
    """Of three the one in the middle, where the budget pays for no more; the next is named."""
    costs = {
        name: api.plan(name, gpus="1xh100", method="full", tokens="10M").candidate.cost.usd
        for name in ("SmolLM2-135M", "SmolLM2-360M", "SmolLM2-1.7B")
    }
    budget = (costs["SmolLM2-360M"] + costs["SmolLM2-1.7B"]) / 2
    (found,) = among(*costs, budget=budget).answers
    assert found.candidate is not None
    assert found.candidate.setting.model.name == "SmolLM2-360M"
    assert found.next_size.startswith("SmolLM2-1.7B (")
    assert found.stops.startswith("budget short by $")
    assert found.tokens_note == ""


def test_the_rule_for_tokens() -> None:
    """Without --tokens a model trained whole gets 20 a parameter; adapters get the default."""
    wanted = api.request(gpus="8xh100", budget=1e6, method=("full", "lora"))
    full, lora = afford_model([catalog_model(SMALL)], wanted, searcher, lambda _: None).answers
    assert full.candidate is not None
    assert lora.candidate is not None
    assert full.candidate.setting.workload.tokens == 20 * catalog_model(SMALL).parameter_count
    assert full.tokens_note == "20 per parameter"
    assert lora.candidate.setting.workload.tokens == 10**9
    assert tokens_per_parameter().value == pytest.approx(1.4e12 / 70e9)


def test_models_without_positions_are_left_out() -> None:
    """GPT-2 takes 1,024 tokens."""
    found = among("GPT-2", SMALL, budget=100, seq_len=2048)
    assert found.skipped == ("GPT-2",)
    assert found.answers[0].candidate is not None
    assert found.answers[0].stops == "no larger model is in the catalog"


def test_no_model_fits() -> None:
    """None, and what the smallest is short of."""
    (found,) = among(SMALL, budget=1e-6).answers
    assert found.candidate is None
    assert found.stops.startswith("budget short by $")


@pytest.mark.parametrize("budget", [None, "cheapest"])
def test_an_amount_is_needed(budget: object) -> None:
    """No budget is no question."""
    with pytest.raises(InputError, match="--budget"):
        api.afford(SMALL, gpus="h100", budget=budget)


def test_a_model_may_have_no_limit_of_positions() -> None:
    """Then one sequence may be a whole batch and no longer."""
    from dataclasses import replace

    endless = replace(llama(), max_positions=0)
    found = {a.question: a for a in api.afford(endless, gpus="1xh100", method="full", budget=1e4, global_batch=1,
                                               seq_len=4096).answers}  # fmt: skip
    assert found["longest context"].stops == "one sequence is a whole batch"


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 1000))
def test_last_of_a_threshold(threshold: int, start: int, most: int) -> None:
    """Where everything up to a number holds, it is that number."""
    start = min(start, most)
    assert last(lambda n: n <= threshold, start, most) == min(threshold, most)


@given(st.sets(st.integers(1, 60)), st.integers(1, 60))
def test_last_of_anything(holding: set[int], start: int) -> None:
    """Whatever holds: the number found does, the next does not."""
    found = last(lambda n: n in holding, start, 60)
    assert found == 0 or found in holding
    assert found == 60 or found + 1 not in holding or found == 0


@given(st.integers(128, 10**6))
def test_sizes_go_down(longest: int) -> None:
    """From the longest through every power of two below it."""
    every = list(sizes(longest))
    assert every == sorted(set(every), reverse=True)
    assert every[0] == longest
    assert all(size & (size - 1) == 0 for size in every[1:])
