"""planner/breakeven.py and planner/quotes.py: formulas by hand, prices that are missing, quotes out of range."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan import api
from trainplan.planner.breakeven import (
    MONTH_H,
    BreakEven,
    break_evens,
    buying_hours,
    reserved_share,
    spot_interval_h,
)
from trainplan.planner.candidate import Candidate, assess
from trainplan.planner.cost import goodput
from trainplan.planner.efficiency import value
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Tier
from trainplan.planner.quotes import YEAR_H, Quotes


@cache
def chosen(**options: Any) -> Candidate:
    """A plan on a machine that the catalog has on spot too."""
    return api.plan("SmolLM2-360M", **{"gpus": "8xh100", "cloud": "aws", **options}).candidate


def rows(quotes: Quotes, candidate: Candidate | None = None) -> dict[str, BreakEven]:
    """Every way to pay, by name, without a plan made anew for spot."""
    return {row.name: row for row in break_evens(candidate or chosen(), quotes, None)}


def test_spot_by_hand() -> None:
    """m = L T / ((1 - o) usd - (1 + F) T)."""
    overhead, lost = value("goodput", "overhead"), value("spot", "hours_lost_per_interruption")
    failures = 64 * value("goodput", "hours_lost_per_failure") / value("goodput", "gpu_hours_between_failures")
    by_hand = lost * 100 / ((1 - overhead) * 250 - (1 + failures) * 100)
    assert spot_interval_h(100.0, 64, 250.0) == pytest.approx(by_hand, rel=1e-9)


@given(st.floats(1, 1e6), st.integers(1, 4096), st.floats(1.2, 20))
def test_at_the_break_even_the_bills_are_equal(training: float, gpus: int, dearer: float) -> None:
    """What the interval is the answer to."""
    usd = training * dearer
    at = spot_interval_h(training, gpus, usd)
    assert training / goodput(gpus, Tier.SPOT, interruption_h=at) == pytest.approx(usd, rel=1e-6)


def test_spot_of_the_same_machine() -> None:
    """The stack and the batch stay, the tier and the price are the catalog's; at the break-even it costs the same."""
    row = rows(Quotes())["spot"]
    assert row.candidate is not None
    assert (row.candidate.offer.tier, row.candidate.offer.name) == (Tier.SPOT, chosen().offer.name)
    assert row.candidate.stack == chosen().stack
    assert row.value is not None
    assert row.pays is (row.value < value("spot", "hours_between_interruptions"))
    assert (row.candidate.cost.usd < chosen().cost.usd) is row.pays


def test_spot_at_the_same_price_never_pays() -> None:
    """Interruptions for nothing."""
    per_gpu = chosen().offer.usd_per_hour / chosen().offer.node.gpus
    row = rows(Quotes(spot_usd_per_gpu_hour=per_gpu))["spot"]
    assert row.value == math.inf
    assert row.pays is False
    assert row.to_dict()["never"] is True
    assert row.to_dict()["value"] is None


def test_a_plan_on_spot_is_not_compared_with_itself() -> None:
    """Unknown, and what to do."""
    spot = replace(chosen().offer, tier=Tier.SPOT)
    c = chosen()
    plan = assess(spot, c.stack, c.setting, method=c.method, zero_stage=c.zero_stage)
    assert "without --tier spot" in rows(Quotes(), plan)["spot"].needs


def test_spot_planned_anew() -> None:
    """A plan on other spot machines is a row of its own; one on the same machines is none."""
    c = chosen()
    same = rows(Quotes())["spot"].candidate
    assert len(break_evens(c, Quotes(), same)) == 3
    other = replace(c, offer=replace(c.offer, name="elsewhere/x", tier=Tier.SPOT))
    names = [row.name for row in break_evens(c, Quotes(), other)]
    assert names == ["spot", "spot", "reserved", "buying"]


def test_reserved_by_hand() -> None:
    """$3 against $6.88 an hour: 43.6 % of the year, 3,822 h; a run of a few hours alone does not pay it."""
    per_gpu = chosen().offer.usd_per_hour / 8
    row = rows(Quotes(reserved_usd_per_gpu_hour=3.0))["reserved"]
    assert row.value == pytest.approx(3.0 / per_gpu)
    assert row.figures["hours"] == pytest.approx(3.0 / per_gpu * YEAR_H)
    assert row.figures["runs"] == pytest.approx(row.figures["hours"] / chosen().cost.hours)
    assert row.pays is False


def test_a_short_commitment_pays() -> None:
    """A term of twice the run's hours at under half of the price."""
    per_gpu, hours = chosen().offer.usd_per_hour / 8, chosen().cost.hours
    assert rows(Quotes(reserved_usd_per_gpu_hour=0.49 * per_gpu, term_h=2 * hours))["reserved"].pays is True
    assert rows(Quotes(reserved_usd_per_gpu_hour=0.51 * per_gpu, term_h=2 * hours))["reserved"].pays is False


def test_a_dear_commitment_never_pays() -> None:
    """At the price of an hour or above."""
    assert rows(Quotes(reserved_usd_per_gpu_hour=1000))["reserved"].value == math.inf
    assert reserved_share(2.0, 2.0) == 1.0


def test_buying_by_hand() -> None:
    """Capital over what an hour of renting costs more than an hour of power."""
    rent = chosen().offer.usd_per_hour
    row = rows(Quotes(capital_per_node=300_000, years=4, node_kw=10, usd_per_kwh=0.1))["buying"]
    hours = 300_000 / (rent - 1.0)
    assert row.value == pytest.approx(hours / MONTH_H)
    assert row.figures["share_of_life"] == pytest.approx(hours / (4 * YEAR_H))
    assert row.figures["capital_usd"] == 300_000 * chosen().setting.nodes
    assert row.pays is False


def test_buying_that_never_pays() -> None:
    """Power dearer than rent; or a life that ends before."""
    assert buying_hours(1.0, 1.0, 1.0) == math.inf
    assert rows(Quotes(capital_per_node=1e8, years=1, node_kw=10, usd_per_kwh=0.1))["buying"].value == math.inf


def test_what_is_missing_is_named() -> None:
    """Unknown, never free: each missing price by its option."""
    found = rows(Quotes(capital_per_node=300_000, years=4))
    assert found["buying"].value is None
    assert found["buying"].needs.endswith("give --node-kw, --usd-per-kwh")
    assert "--reserved-usd-per-gpu-hour" in found["reserved"].needs
    own = chosen(cloud=None, price=2.0)
    assert "--spot-usd-per-gpu-hour" in rows(Quotes(), own)["spot"].needs
    assert rows(Quotes(), own)["buying"].value is None


@pytest.mark.parametrize("name", ["spot_usd_per_gpu_hour", "reserved_usd_per_gpu_hour", "term_h", "years", "node_kw"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_quotes_out_of_range(name: str, wrong: float) -> None:
    """An error that names the option."""
    with pytest.raises(InputError, match="out of range"):
        Quotes(**{name: wrong}).check()
