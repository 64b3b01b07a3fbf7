"""Constants of the time and cost models, most of them measured shares of datasheet rates: configs/efficiency.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One constant and where it comes from."""

    value: float
    kind: str  # "measured", "derived", "fitted" or "assumed"
    source: str
    date: str
    unit: str = "share"


@lru_cache(maxsize=1)
def figures() -> Mapping[str, Mapping[str, Figure]]:
    """All constants, by table and name."""
    import tomllib  # here: the command line's --help reads no constants and should not wait for these
    from importlib.resources import files

    text = files("trainplan.configs").joinpath("efficiency.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    return {table: {name: Figure(**row) for name, row in rows.items()} for table, rows in tables.items()}


def figure(table: str, name: str) -> Figure:
    """One constant; the table's ``other`` where the name (an architecture) has no row of its own."""
    rows = figures()[table]
    return rows[name] if name in rows else rows["other"]


def value(table: str, name: str) -> float:
    """One constant's value.

    >>> value("matmul_ceiling", "hopper"), value("matmul_ceiling", "unheard-of") == value("matmul_ceiling", "other")
    (0.803, True)
    """
    return figure(table, name).value


def optional(table: str, *names: str) -> float | None:
    """The first of these rows that a table has; None where it has none of them.

    >>> optional("matmul_energy", "hopper sm90", "hopper"), optional("matmul_energy", "unheard-of")
    (1040000000000.0, None)
    """
    rows = figures()[table]
    return next((rows[name].value for name in names if name in rows), None)


def is_young(architecture: str, software: str) -> bool:
    """Whether libraries of a month ("2023-05"; "" is today) are from an architecture's first years.

    >>> is_young("Hopper sm90", "2023-05"), is_young("Ampere sm80", "2023-05"), is_young("Hopper sm90", "")
    (True, False, False)
    """
    released = optional("release", architecture_key(architecture))
    if not software or released is None:
        return False
    year, month = software.split("-")
    return int(year) + (int(month) - 1) / MONTHS < released + value("release", "mature_after")


MONTHS = 12


def architecture_key(architecture: str) -> str:
    """The first word of a GPU's architecture, as the tables name it.

    >>> architecture_key("Hopper sm90"), architecture_key("CDNA3")
    ('hopper', 'cdna3')
    """
    words = architecture.lower().split()
    return words[0] if words else "other"
