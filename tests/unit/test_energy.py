"""planner/energy.py: kWh and kgCO2."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trainplan
from trainplan.planner.catalog import find_gpu
from trainplan.planner.energy import run_kgco2, run_kwh

H100 = find_gpu("h100")


def test_by_hand() -> None:
    """16 x 700 W x 0.9 x 1.54 x 1.5 x 10 h = 232.8 kWh; the default PUE is 1.2."""
    assert H100.tdp_w == 700
    assert run_kwh(H100, 16, 10.0, pue=1.5) == pytest.approx(16 * 0.7 * 0.9 * 1.54 * 1.5 * 10)
    assert run_kwh(H100, 16, 10.0) == pytest.approx(16 * 0.7 * 0.9 * 1.54 * 1.2 * 10)


def test_stated_power_is_what_is_counted() -> None:
    """2 nodes of 10 kW for 3 h at a PUE of 1.5."""
    assert run_kwh(find_gpu("h100"), 16, 3.0, pue=1.5, machines_kw=20.0) == 90.0
    cost = trainplan.estimate(
        "llama-3-8b", gpus="8xh100", zero=1, capital=300_000, years=4, power_kw=10, usd_per_kwh=0.12, utilization=0.7,
        pue=1.3,
    ).candidate.cost  # fmt: skip
    assert cost.kwh == pytest.approx(10 * 1.3 * cost.hours)


def test_unknown_power_is_unknown() -> None:
    """No TDP, no kWh, no kgCO2."""
    kwh = run_kwh(replace(H100, tdp_w=None), 8, 1.0)
    assert kwh is None
    assert run_kgco2(kwh, 0.4) is None
    assert run_kgco2(10.0, 0.0) == 0.0
