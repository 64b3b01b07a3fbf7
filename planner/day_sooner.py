"""What it costs to be done a day earlier: the program solved once more, a day before the plan's end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .candidate import Candidate
from .decide import Search, quickest, told
from .documents import summary
from .units import DAY_S, HOUR_S, duration


@dataclass(frozen=True, kw_only=True)
class DaySooner:
    """The cheapest plan of the same method that ends a day earlier; None where there is none, and why."""

    candidate: Candidate | None
    extra_usd: float | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        row = summary(self.candidate) if self.candidate else {}
        return {"extra_usd": self.extra_usd, "note": self.note, **row}


def day_sooner(search: Search, chosen: Candidate) -> DaySooner:
    """Solve again with the plan's hours less a day as the deadline, whatever the budget."""
    left_s = chosen.cost.hours * HOUR_S - DAY_S
    if left_s <= 0:
        return _none(f"the run takes {duration(chosen.cost.hours * HOUR_S)}")
    found = search.cheapest(chosen.method, replace(search.any_money, deadline_s=left_s))
    if found is None:
        least = quickest(search, chosen.method)
        return _none(f"the quickest is {told(least[0])}" if least else "nothing else fits")
    candidate = found[0]
    over = candidate.cost.usd > search.limits.budget_usd
    return DaySooner(
        candidate=candidate,
        extra_usd=candidate.cost.usd - chosen.cost.usd,
        note="over the budget" if over else "",
    )


def _none(note: str) -> DaySooner:
    return DaySooner(candidate=None, extra_usd=None, note=note)
