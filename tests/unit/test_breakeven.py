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
from trainplan.planner.billing import HOURS_PER_MONTH, HOURS_PER_YEAR
from trainplan.planner.breakeven import BreakEven, break_evens, buying_hours, reserved_share, spot_interval_h
from trainplan.planner.candidate import Candidate, assess
from trainplan.planner.efficiency import value
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Tier
from trainplan.planner.quotes import Quotes


@cache
def chosen(**options: Any) -> Candidate:
    """A plan on a machine that the catalog has on spot too."""
    return api.plan("SmolLM2-360M", **{"gpus": "8xh100", "cloud": "aws", **options}).candidate


def rows(quotes: Quotes, candidate: Candidate | None = None, **options: Any) -> dict[str, BreakEven]:
    """Every way to pay, by name, without a plan made anew for spot."""
    request = api.request(**{"gpus": "8xh100", **options})
    return {row.name: row for row in break_evens(candidate or chosen(), request, quotes, None)}


def spot() -> Candidate:
    """The plan's machine on spot, as the catalog prices it."""
    found = rows(Quotes())["spot"].candidate
    assert found is not None
    return found


@given(st.floats(1.05, 20))
def test_at_the_break_even_the_bills_are_equal(dearer: float) -> None:
    """Planned with the interval that is the answer, the spot run costs what it was compared with."""
    usd = dearer * spot().cost.usd
    at = spot_interval_h(spot(), usd)
    workload = spot().setting.workload
    asked = replace(workload, run=replace(workload.run, spot_interruption_h=at))
    setting = replace(spot().setting, workload=asked)
    again = assess(spot().offer, spot().stack, setting, method=spot().method, zero_stage=spot().zero_stage)
    assert again.cost.usd <= usd * (1 + 1e-6)
    if again.cost.run.saved.total_bytes and at > 0.1:  # below, restarts alone fill the time and bills leap
        assert again.cost.usd == pytest.approx(usd, rel=1e-3)


def test_more_interruptions_need_a_lower_price() -> None:
    """The dearer the other run, the more interruptions spot may have."""
    usd = spot().cost.usd
    intervals = [spot_interval_h(spot(), factor * usd) for factor in (1.01, 1.5, 3.0)]
    assert intervals == sorted(intervals, reverse=True)
    assert spot_interval_h(spot(), usd) == pytest.approx(value("spot", "hours_between_interruptions"), rel=1e-6)
    assert spot_interval_h(spot(), 0.3 * usd) == math.inf  # dearer even without interruptions


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
    offer = replace(chosen().offer, tier=Tier.SPOT)
    c = chosen()
    plan = assess(offer, c.stack, c.setting, method=c.method, zero_stage=c.zero_stage)
    assert "without --tier spot" in rows(Quotes(), plan)["spot"].needs


def test_spot_planned_anew() -> None:
    """A plan on other spot machines is a row of its own; one on the same machines is none."""
    c = chosen()
    same = rows(Quotes())["spot"].candidate
    request = api.request(gpus="8xh100")
    assert len(break_evens(c, request, Quotes(), same)) == 3
    other = replace(c, offer=replace(c.offer, name="elsewhere/x", tier=Tier.SPOT))
    names = [row.name for row in break_evens(c, request, Quotes(), other)]
    assert names == ["spot", "spot", "reserved", "buying"]


def test_reserved_by_hand() -> None:
    """$3 against $6.88 an hour: 43.6 % of the year, 3,822 h; a run of a few hours alone does not pay it."""
    per_gpu = chosen().offer.usd_per_hour / 8
    row = rows(Quotes(reserved_usd_per_gpu_hour=3.0))["reserved"]
    assert row.value == pytest.approx(3.0 / per_gpu)
    assert row.figures["hours"] == pytest.approx(3.0 / per_gpu * HOURS_PER_YEAR)
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
    row = rows(Quotes(capital=300_000, years=4, power_kw=8, pue=1.25, usd_per_kwh=0.1))["buying"]
    hours = 300_000 / (rent - 1.0)
    assert row.value == pytest.approx(hours / HOURS_PER_MONTH)
    assert row.figures["share_of_life"] == pytest.approx(hours / (4 * HOURS_PER_YEAR))
    assert row.figures["capital_usd"] == 300_000 * chosen().setting.nodes
    assert row.pays is False


def test_buying_that_never_pays() -> None:
    """Power dearer than rent; or a life that ends before."""
    assert buying_hours(1.0, 1.0, 1.0) == math.inf
    assert rows(Quotes(capital=1e8, years=1, power_kw=8, pue=1.25, usd_per_kwh=0.1))["buying"].value == math.inf


def test_what_is_missing_is_named() -> None:
    """Unknown, never free: each missing price by its option."""
    found = rows(Quotes(capital=300_000, years=4))
    assert found["buying"].value is None
    assert found["buying"].needs.endswith("give --power-kw, --pue, --usd-per-kwh")
    assert "--reserved-usd-per-gpu-hour" in found["reserved"].needs
    own = chosen(cloud=None, price=2.0)
    assert "--spot-usd-per-gpu-hour" in rows(Quotes(), own, price=2.0)["spot"].needs
    assert rows(Quotes(), own, price=2.0)["buying"].value is None


def test_hosting_is_capital_over_the_years() -> None:
    """$10,000 a year for four years is $40,000 more of a node; without it the answer says what is not counted."""
    quotes = Quotes(capital=300_000, years=4, power_kw=8, pue=1.25, usd_per_kwh=0.1)
    with_it, dearer = (replace(quotes, hosting_usd=10_000), replace(quotes, capital=340_000))
    assert rows(with_it)["buying"].value == rows(dearer)["buying"].value
    assert "not counted" in rows(quotes)["buying"].source
    assert "not counted" not in rows(with_it)["buying"].source


@pytest.mark.parametrize("name", ["spot_usd_per_gpu_hour", "reserved_usd_per_gpu_hour", "term_h", "capital", "pue"])
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_quotes_out_of_range(name: str, wrong: float) -> None:
    """An error that names the option."""
    with pytest.raises(InputError, match="out of range"):
        Quotes(**{name: wrong}).check()
