"""planner/time/spread.py and grounds.py: how sure a step's seconds are, and what they rest on."""

from __future__ import annotations

from math import sqrt

import pytest
from trainplan.planner.catalog import find_offers
from trainplan.planner.efficiency import value
from trainplan.planner.time import StepTime, TimeTerm, rests_on, step_seconds
from trainplan.planner.time.grounds import KINDS, Ground, ground_of
from trainplan.planner.time.spread import Z, source_of
from trainplan.planner.work import Resource, When, Work

NODE = find_offers("aws/p5.48xlarge")[0].node


def term(seconds: float, limited_by: str, kind: str = "fitted") -> TimeTerm:
    """A term that nothing hides."""
    return TimeTerm(limited_by, seconds, seconds, limited_by, Ground("figure", kind, "source"))


def step(*terms: TimeTerm) -> StepTime:
    """A step of these terms."""
    total = sum(t.exposed_s for t in terms)
    return StepTime(forward_s=total, backward_s=0.0, gradient_accumulation_steps=1, boundary_s=0.0, terms=terms)


def test_errors_of_one_resource_move_together() -> None:
    """Two terms of one resource are as uncertain as one of both; those of two resources less."""
    unknown, matmul, memory = (value("spread", name) for name in ("unknown", "matmul", "memory"))
    both = step_seconds(step(term(6, "matmul"), term(4, "matmul")))
    assert both.upper == pytest.approx(10 * (1 + Z * sqrt(unknown**2 + matmul**2)))
    assert both.low == pytest.approx(20 - both.upper)
    apart = step_seconds(step(term(6, "matmul"), term(4, "memory")))
    assert apart.upper == pytest.approx(10 * (1 + Z * sqrt(unknown**2 + (0.6 * matmul) ** 2 + (0.4 * memory) ** 2)))


def test_z_is_eighty_percent() -> None:
    """Between -1.28 and 1.28 standard deviations lie 80 % of a normal distribution."""
    assert pytest.approx(1.2816, abs=1e-4) == Z


def test_every_resource_has_a_spread() -> None:
    """A term of any kind of work finds a row of its own."""
    rows = {source_of(resource.value) for resource in Resource} | {"pipeline", "stragglers"}
    other = value("spread", "other")
    assert all(value("spread", row) != other or row == "other" for row in rows)


def test_shares_by_how_figures_are_known() -> None:
    """They add up to one, the surest first."""
    shares = rests_on(step(term(6, "matmul"), term(3, "memory", "measured"), term(1, "send", "assumed")))
    assert shares == pytest.approx({"measured": 0.3, "fitted": 0.6, "assumed": 0.1})
    assert list(shares) == [kind for kind in KINDS if kind in shares]


@pytest.mark.parametrize("resource", list(Resource))
def test_every_resource_names_its_figure(resource: Resource) -> None:
    """A figure, how it is known and where it was read."""
    ground = ground_of(Work(name="x", resource=resource, amount=1.0, when=When.FORWARD), NODE, 2, 8)
    assert ground.kind in KINDS
    assert ground.source
    assert ".toml" in ground.figure


def test_a_step_takes_some_time() -> None:
    """However little is known of a step, the quick end of its band is above nothing, and a run has a cost there."""
    assert step_seconds(step(term(1e-9, "kernel launches"))).low > 0


def test_one_rank_rests_on_no_network() -> None:
    """Nobody to talk to."""
    ground = ground_of(Work(name="x", resource=Resource.ALL_REDUCE, amount=1.0, when=When.FORWARD), NODE, 1, 1)
    assert ground.figure == "no network"


def test_low_precision_rests_on_its_own_figure() -> None:
    """FP8 and FP4 have energies of their own where the GPU has one."""
    work = Work(name="x", resource=Resource.MATMUL, amount=1.0, when=When.FORWARD, bits=8)
    assert ground_of(work, NODE, 1, 8).figure == "efficiency.toml fp8_energy.hopper"
