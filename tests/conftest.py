"""Options, Hypothesis profiles and fixtures of all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# ci: the same examples every time, so that a red run can be repeated; dev: new ones every time, so that bugs are found.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("dev", deadline=None)
settings.load_profile("dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --update-golden."""
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the files of tests/golden from what the program says"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten instead of compared."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices are as old as on 25 November 2026, whenever the tests run."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795564800")
