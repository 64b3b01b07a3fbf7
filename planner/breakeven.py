"""When another way to pay costs less than the plan's: spot machines, a commitment, machines of one's own.

Prices are the catalog's or the user's; where one is missing the answer is unknown, and names what to give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import catalog
from .candidate import Candidate, assess
from .cost import goodput
from .efficiency import value
from .hardware import Offer, Tier
from .plan import decision, summary
from .quotes import YEAR_H, Quotes, flag
from .request import Request
from .units import HOUR_S

MONTH_H = YEAR_H / 12
LONGEST_H = 1e6  # hours between interruptions that count as "never interrupted"
SHORTEST_H = 1e-4
BISECTIONS = 80  # halvings of the logarithm: beyond what a float tells apart
SPOT, RESERVED, BUYING = "spot", "reserved", "buying"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """One way to pay: where it costs the same as the plan, and whether it pays as things stand."""

    name: str  # spot, reserved, buying
    value: float | None = None  # None: unknown; infinite: never
    unit: str = ""
    pays: bool | None = None  # as assumed; None: unknown, or it depends on more runs than this one
    needs: str = ""  # why it is unknown, and what to give
    candidate: Candidate | None = None  # the plan on spot
    figures: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; never is null with ``never`` true."""
        never = self.value == math.inf
        return {
            "name": self.name,
            "value": None if never else self.value,
            "never": never,
            "unit": self.unit,
            "pays": self.pays,
            "needs": self.needs,
            "figures": dict(self.figures),
            "source": self.source,
            "plan": summary(self.candidate) if self.candidate else None,
        }


@dataclass(frozen=True, kw_only=True)
class BreakEvens:
    """A plan and every other way to pay for it."""

    request: Request
    candidate: Candidate
    rows: tuple[BreakEven, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema_version": 1,
            "status": "answered",
            "model": self.candidate.setting.model.name,
            "decision": decision(self.candidate),
            "breakeven": [row.to_dict() for row in self.rows],
            "request": self.request.to_dict(),
        }


def break_evens(chosen: Candidate, quotes: Quotes, spot_plan: Candidate | None) -> tuple[BreakEven, ...]:
    """Spot on the plan's machines, spot planned anew, a commitment, buying.

    Args:
        chosen: the plan.
        quotes: the user's prices.
        spot_plan: the cheapest plan on spot machines, whatever machines these are; None: there is none.

    Raises:
        InputError: a quote out of range.
    """
    quotes.check()
    same = _spot_same(chosen, quotes)
    anew = () if spot_plan is None or _alike(spot_plan, same.candidate) else (_spot(chosen, spot_plan),)
    return (same, *anew, _reserved(chosen, quotes), _buying(chosen, quotes))


def _alike(one: Candidate, other: Candidate | None) -> bool:
    return other is not None and (one.offer.name, one.gpus, one.stack.names) == (
        other.offer.name,
        other.gpus,
        other.stack.names,
    )


def spot_interval_h(training_usd: float, gpus: int, usd: float) -> float:
    """Hours between interruptions at which a spot run costs as much as a run that costs ``usd``.

    Formula: training_usd / goodput(G, spot, m) = usd, solved for m by bisection. With
    goodput = (1 - o) / (1 + F + L / m), F = G lost / MTBF and L hours lost per interruption, that is
    m = L training_usd / ((1 - o) usd - (1 + F) training_usd).

    Args:
        training_usd: USD of the spot machines for the hours that train, interruptions and overheads left out.
        gpus: G.
        usd: USD of the other run, all included.

    Returns:
        Hours; infinite where spot costs more even if nothing is ever interrupted.

    >>> round(spot_interval_h(100.0, 8, 300.0), 3)
    0.16
    >>> spot_interval_h(100.0, 8, 90.0)
    inf
    """

    def cheaper(interval_h: float) -> bool:
        return training_usd / goodput(gpus, Tier.SPOT, interruption_h=interval_h) <= usd

    if not cheaper(LONGEST_H):
        return math.inf
    low, high = math.log(SHORTEST_H), math.log(LONGEST_H)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if cheaper(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _training_usd(c: Candidate) -> float:
    """USD of the candidate's machines for the hours that train."""
    return c.offer.usd_per_hour * c.setting.nodes * c.setting.workload.steps * c.time.step_s / HOUR_S


def _spot(chosen: Candidate, spot: Candidate) -> BreakEven:
    """A spot plan against the plan, which is not on spot."""
    at = spot_interval_h(_training_usd(spot), spot.gpus, chosen.cost.usd)
    assumed, lost = (value("spot", name) for name in ("hours_between_interruptions", "hours_lost_per_interruption"))
    return BreakEven(
        name=SPOT,
        value=at,
        unit="hours between interruptions",
        pays=assumed > at,
        candidate=spot,
        figures={
            "assumed_h": assumed,
            "lost_h": lost,
            "spot_usd": spot.cost.usd,
            "plan_usd": chosen.cost.usd,
        },
        source=f"{spot.offer.source}, {spot.offer.date}",
    )


def _spot_same(chosen: Candidate, quotes: Quotes) -> BreakEven:
    """The plan's own machines and stack, on spot."""
    if chosen.offer.tier is Tier.SPOT:
        return _unknown(SPOT, "the plan is on spot machines; plan it without --tier spot to compare")
    offer = _spot_offer(chosen.offer, quotes)
    if offer is None:
        return _unknown(SPOT, f"no spot price of {chosen.offer.name}; give --spot-usd-per-gpu-hour")
    spot = assess(offer, chosen.stack, chosen.setting, method=chosen.method, zero_stage=chosen.zero_stage)
    return _spot(chosen, spot)


def _spot_offer(offer: Offer, quotes: Quotes) -> Offer | None:
    """The same machine on spot, at the user's price or the catalog's."""
    quoted = quotes.spot_usd_per_gpu_hour
    if quoted is not None:
        usd = quoted * offer.node.gpus
        return replace(offer, tier=Tier.SPOT, usd_per_hour=usd, source="the user's price", date="as given")
    found = [o for o in catalog.offers() if o.name == offer.name and o.tier is Tier.SPOT]
    return replace(found[0], node=offer.node) if found else None


def reserved_share(reserved_usd: float, on_demand_usd: float) -> float:
    """Share of a commitment's term that must be used before it costs less than paying by the hour.

    Formula: reserved price / on-demand price, both per hour; a commitment is paid for its whole term.

    >>> reserved_share(1.2, 2.0)
    0.6
    """
    return reserved_usd / on_demand_usd


def _reserved(chosen: Candidate, quotes: Quotes) -> BreakEven:
    """A commitment to the plan's machines, from the user's price or the catalog's."""
    per_gpu = catalog.usd_per_gpu_hour(chosen.offer)
    price, source = _reserved_price(chosen.offer, quotes)
    if price is None:
        return _unknown(RESERVED, f"no reserved price of {chosen.offer.name}; give --reserved-usd-per-gpu-hour")
    share = reserved_share(price, per_gpu)
    hours = share * quotes.term_h
    return BreakEven(
        name=RESERVED,
        value=share if share < 1 else math.inf,
        unit="share of the term in use",
        pays=share < 1 and chosen.cost.hours >= hours,
        figures={
            "hours": hours,
            "term_h": quotes.term_h,
            "this_run_h": chosen.cost.hours,
            "runs": hours / chosen.cost.hours,
            "reserved_usd_per_gpu_hour": price,
            "usd_per_gpu_hour": per_gpu,
        },
        source=source,
    )


def _reserved_price(offer: Offer, quotes: Quotes) -> tuple[float | None, str]:
    if quotes.reserved_usd_per_gpu_hour is not None:
        return quotes.reserved_usd_per_gpu_hour, "the user's price"
    found = [o for o in catalog.offers() if o.name == offer.name and o.tier is Tier.RESERVED]
    if not found:
        return None, ""
    cheapest = min(found, key=catalog.usd_per_gpu_hour)
    return catalog.usd_per_gpu_hour(cheapest), f"{cheapest.source}, {cheapest.date}"


def buying_hours(capital_usd: float, rent_usd_per_hour: float, running_usd_per_hour: float) -> float:
    """Hours of use of a node after which having bought it costs less than having rented it.

    Formula: capital / (rent - running cost), all for one node; infinite where running it costs as much as renting.

    >>> buying_hours(300_000, 24.0, 4.0)
    15000.0
    """
    saved = rent_usd_per_hour - running_usd_per_hour
    return capital_usd / saved if saved > 0 else math.inf


def _buying(chosen: Candidate, quotes: Quotes) -> BreakEven:
    """Nodes of one's own against the plan's rented ones."""
    if chosen.offer.tier is Tier.OWNED:
        return _unknown(BUYING, "the plan's price is your own; plan with catalog prices to compare")
    wanted = ("capital_per_node", "years", "node_kw", "usd_per_kwh")
    missing = [flag(name) for name in wanted if getattr(quotes, name) is None]
    capital, years, kw, per_kwh = (getattr(quotes, name) or math.nan for name in wanted)
    if missing:
        return _unknown(BUYING, f"no price of a node of your own; give {', '.join(missing)}")
    rent, running, life_h = chosen.offer.usd_per_hour, kw * per_kwh, years * YEAR_H
    hours = buying_hours(capital, rent, running)
    return BreakEven(
        name=BUYING,
        value=hours / MONTH_H if hours <= life_h else math.inf,
        unit="months of use",
        pays=hours <= life_h and chosen.cost.hours >= hours,
        figures={
            "share_of_life": hours / life_h,
            "life_h": life_h,
            "this_run_h": chosen.cost.hours,
            "rent_usd_per_node_hour": rent,
            "running_usd_per_node_hour": running,
            "capital_usd": capital * chosen.setting.nodes,
            "nodes": chosen.setting.nodes,
        },
        source="the user's prices",
    )


def _unknown(name: str, needs: str) -> BreakEven:
    return BreakEven(name=name, needs=needs)
