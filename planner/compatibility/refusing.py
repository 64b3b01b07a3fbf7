"""Which refusals facts meet: asked thousands of times by a search, so rows are found by one of their facts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from .table import Facts, Refusal, table
from .versions import Versions, hold


def refusals() -> tuple[Refusal, ...]:
    """All rows, in the order of the file."""
    return table().refusals


@cache
def _by_first_fact() -> dict[tuple[str, object], tuple[tuple[int, Refusal], ...]]:
    """Rows with their place in the file, by each value of their first fact."""
    found: dict[tuple[str, object], tuple[tuple[int, Refusal], ...]] = {}
    for place, row in enumerate(refusals()):
        key, values = row.when[0]
        for value in values:
            found[key, value] = (*found.get((key, value), ()), (place, row))
    return found


def met(facts: Facts) -> Iterator[Refusal]:
    """Every row that the facts meet in some version, in the order of the file."""
    index = _by_first_fact()
    rows = [entry for fact in facts.items() if fact in index for entry in index[fact] if entry[1].hits(facts)]
    yield from (row for _, row in sorted(rows, key=lambda entry: entry[0]))


def refused(facts: Facts, *, versions: Versions | None = None) -> Refusal | None:
    """The first refusal that these facts meet.

    Args:
        facts: what the strategies of a stack state.
        versions: of packages, by name; left out, what holds for every version: all that a plan can meet
            (`tests/unit/test_compatibility.py` holds the table to that for the pinned versions).

    >>> refused({"zero_stage": 2, "offload_parameters": "cpu"}).instead
    'zero-3'
    >>> refused({"zero_stage": 3, "offload_parameters": "cpu"}) is None
    True
    >>> qlora = {"method": "qlora", "zero_stage": 3}
    >>> refused(qlora) is None, refused(qlora, versions={"bitsandbytes": "0.42.0"}).known_for()
    (True, ' (bitsandbytes <0.43)')
    """
    for row in met(facts):
        if not row.versions or (versions is not None and hold(row.versions, versions)):
            return row
    return None
