"""planner/plan.py and the public face: one decision, the same numbers wherever they are asked for."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import trainplan
import trainplan.api
from trainplan.planner.emit.deepspeed import to_json
from trainplan.planner.errors import NoPlan
from trainplan.planner.ledger import Device
from trainplan.planner.plan import Plan
from trainplan.planner.program import Status

from ..tiny import llama

MODEL = llama(hidden=1024, layers=6, vocab=16000, intermediate=2816)
OWN: dict[str, Any] = {
    "gpus": "a100-40",
    "price": 1.5,
    "gpus_per_node": 4,
    "host_memory_gib": 256.0,
    "internode_gbps": 100.0,
    "tokens": 10**8,
    "seq_len": 2048,
    "global_batch": 32,
    "max_gpus": 8,
}


@cache
def planned(**changes: Any) -> Plan:
    """A plan on machines of one's own."""
    return trainplan.plan(MODEL, **{**OWN, **changes})


def text(fact: object) -> str | None:
    """A device, or none."""
    return None if fact is None else str(fact)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "adapters": {"method": "lora"},
    "quantised": {"method": "qlora"},
    "sharded": {"require": ("zero-3",)},
    "recomputing": {"require": ("zero-3", "checkpointing")},
    "offloaded": {"require": ("zero-3", "offload-optimizer-cpu", "checkpointing")},
    "parameters": {"require": ("offload-parameters-cpu",)},
}


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_of_the_plan_is_the_plan(name: str) -> None:
    """The decision typed back into estimate gives its bytes, seconds and dollars."""
    found = planned(**CASES[name])
    c, facts = found.candidate, found.candidate.stack.facts
    ratio = found.ds_config["zero_optimization"].get("offload_optimizer", {}).get("ratio", 1.0)
    again = trainplan.estimate(
        MODEL,
        **{**OWN, **CASES[name], "gpus": f"{c.gpus}xa100-40", "method": c.method},
        zero=c.zero_stage,
        micro_batch=c.setting.micro_batch,
        checkpointing=c.layers or "none",
        offload_optimizer=text(facts.get("offload_optimizer")),
        offload_parameters=text(facts.get("offload_parameters")),
        offload_ratio=ratio,
    )
    assert again.candidate.gpu == c.gpu
    assert again.candidate.host == c.host
    assert again.candidate.time.step_s == pytest.approx(c.time.step_s, rel=1e-12)
    assert again.candidate.cost == c.cost
    assert again.ds_config == found.ds_config


@pytest.mark.parametrize("name", CASES)
def test_the_document_repeats_the_decision(name: str) -> None:
    """JSON numbers are the candidate's; the entries add up to its phases; nothing is NaN."""
    found = planned(**CASES[name])
    document = json.loads(to_json(found.to_dict()))
    decision, memory = document["decision"], document["memory"]["gpu"]
    assert decision["gpus"] == decision["nodes"] * decision["gpus_per_node"] == found.candidate.gpus
    assert decision["cost_usd"] == document["cost"]["usd"] == found.candidate.cost.usd
    assert document["ds_config"] == found.ds_config
    for phase, size in memory["phases"].items():
        assert size == sum(e["bytes"] for e in memory["entries"] if phase in e["phases"])
    assert memory["allocated_bytes"] == memory["phases"][memory["fullest_phase"]] == max(memory["phases"].values())
    assert memory["upper_bound_bytes"] <= memory["capacity_bytes"]


@pytest.mark.parametrize("name", CASES)
def test_the_stack_ends_at_the_decision(name: str) -> None:
    """The last row of the fold is the planned ledger and step; its keys are the file's."""
    found = planned(**CASES[name])
    last = found.rows[-1]
    assert len(found.rows) == len(found.candidate.stack.strategies) + 1
    assert last.allocated_bytes == found.candidate.ledger.peak(Device.GPU)
    assert last.step_s == pytest.approx(found.candidate.time.step_s, rel=1e-12)


def test_the_certificate_is_optimal() -> None:
    """Bound and value meet; the value is the bill."""
    certificate = planned().certificate
    assert certificate.status is Status.OPTIMAL
    assert certificate.gap < 1e-6
    assert certificate.value == pytest.approx(planned().candidate.cost.usd, rel=1e-6)


def test_every_constraint_holds() -> None:
    """A plan that breaks one is none."""
    assert all(c.holds for c in planned().constraints)


def test_cost_is_price_times_hours() -> None:
    """4 GPUs a node at 1.5 dollars."""
    c = planned().candidate
    assert c.cost.usd == pytest.approx(c.cost.hours * c.setting.nodes * 4 * 1.5)


def test_the_frontier_gets_dearer_and_faster() -> None:
    """Each point takes less time and costs no less; the first is the cheapest."""
    points = planned().frontier
    assert points
    dollars, hours = [p.cost.usd for p in points], [p.cost.hours for p in points]
    assert dollars == sorted(dollars)
    assert hours == sorted(hours, reverse=True)
    assert dollars[0] == pytest.approx(planned().candidate.cost.usd, rel=1e-5)


def test_no_plan_says_what_is_short() -> None:
    """A deadline nobody meets: NoPlan, one line, with ways out."""
    with pytest.raises(NoPlan) as caught:
        planned(deadline=120.0, tokens=10**10)
    text = str(caught.value)
    assert "\n" not in text
    assert "deadline" in text
    document = trainplan.api.no_plan(caught.value)
    assert document["status"] == "no_plan"
    assert document["ways_out"]
