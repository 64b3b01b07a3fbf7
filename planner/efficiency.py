"""Constants of the time, run and energy models: configs/efficiency.toml (rates) and configs/run.toml (whole runs)."""

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


FILES = ("efficiency.toml", "run.toml")  # no table stands in both


@lru_cache(maxsize=1)
def figures() -> Mapping[str, Mapping[str, Figure]]:
    """All constants, by table and name."""
    return {table: rows for name in FILES for table, rows in figures_of(name).items()}


def figures_of(name: str) -> Mapping[str, Mapping[str, Figure]]:
    """The constants of one file."""
    import tomllib  # here: the command line's --help reads no constants and should not wait for these
    from importlib.resources import files

    tables = tomllib.loads(files("trainplan.configs").joinpath(name).read_text(encoding="utf-8"))
    return {table: {key: Figure(**row) for key, row in rows.items()} for table, rows in tables.items()}


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


def has(table: str, name: str) -> bool:
    """Whether a table has a row of this name.

    >>> has("matmul_energy", "hopper"), has("matmul_energy", "unheard-of")
    (True, False)
    """
    return name in figures()[table]


def first(table: str, *names: str) -> str | None:
    """The first of these names that a table has a row for; None where it has none of them.

    >>> first("matmul_energy", "hopper-sm90", "hopper"), first("matmul_energy", "unheard-of")
    ('hopper', None)
    """
    return next((name for name in names if has(table, name)), None)


def optional(table: str, *names: str) -> float | None:
    """The value of the first of these rows that a table has; None where it has none of them.

    >>> optional("matmul_energy", "hopper-sm90", "hopper"), optional("matmul_energy", "unheard-of")
    (1040000000000.0, None)
    """
    found = first(table, *names)
    return None if found is None else value(table, found)


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


def architecture_keys(architecture: str) -> tuple[str, str]:
    """Names that a table may know an architecture by: with its compute capability, then without.

    >>> architecture_keys("Ampere sm86")
    ('ampere-sm86', 'ampere')
    """
    return "-".join(architecture.lower().split()[:2]), architecture_key(architecture)
