"""Terms by name: those of configs/billing.toml, and those a price list brings; the constants of prices beside them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from .efficiency import Figure
from .terms import Terms

STEPS = ("billing_step_hours", "long_after_hours", "long_step_hours")


@cache
def _tables() -> Mapping[str, Any]:
    import tomllib
    from importlib.resources import files

    return tomllib.loads(files("trainplan.configs").joinpath("billing.toml").read_text(encoding="utf-8"))


@cache
def constant(name: str) -> Figure:
    """A constant of prices, with its source.

    >>> constant("stale_after_days").value
    90
    """
    return Figure(**_tables()["constants"][name])


@cache
def known_terms() -> Mapping[str, Terms]:
    """The terms that any price list may name.

    >>> known_terms()["aws-capacity-block"].billed_hours(15 * 24) / 24
    21.0
    """
    return {name: terms_of(row) for name, row in _tables()["terms"].items()}


def terms_of(row: Mapping[str, Any]) -> Terms:
    """A sound row as terms."""
    rest = {key: value for key, value in row.items() if key not in ("source", "date")}
    return Terms(**rest, source=f"{row['source']} ({row['date']})")


def terms_problems(label: str, row: Mapping[str, Any]) -> list[str]:
    """What contradicts itself in terms whose single values are sound."""
    step, after, long_step = (row.get(key) for key in STEPS)
    problems = []
    if (after is None) != (long_step is None) or (after is not None and step is None):
        problems.append(f"{label}: long_after_hours, long_step_hours and billing_step_hours go together")
    elif after is not None and step is not None and after % step:
        problems.append(f"{label}: long_after_hours {after:g} is not a whole number of steps of {step:g} h")
    if row.get("maximum_nodes", row.get("minimum_nodes", 1)) < row.get("minimum_nodes", 1):
        problems.append(f"{label}: maximum_nodes {row['maximum_nodes']} is below minimum_nodes {row['minimum_nodes']}")
    return problems


def lacking(tier: str, terms: Terms | None) -> str:
    """What a price of this tier cannot be billed without; empty where nothing is missing."""
    if tier == "reserved" and (terms is None or terms.commitment_hours is None):
        return "a reserved price needs terms with commitment_hours: it is billed whether used or not"
    if tier == "capacity-block" and (terms is None or terms.billing_step_hours is None):
        return "a capacity block's price needs terms with billing_step_hours: it is sold in whole days"
    return ""
