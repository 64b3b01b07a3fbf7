"""Measured and assumed overheads of a process: configs/measured/overheads.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Overhead:
    """One figure with its range and where it comes from."""

    low: float
    point: float
    upper: float
    unit: str
    source: str
    date: str
    certainty: str


@cache
def overhead(name: str) -> Overhead:
    """Look up one figure.

    >>> overhead("needed").upper
    0.06
    """
    return _table()[name]


@cache
def _table() -> dict[str, Overhead]:
    text = files("trainplan.configs").joinpath("measured", "overheads.toml").read_text(encoding="utf-8")
    return {key: Overhead(**row) for key, row in tomllib.loads(text).items()}
