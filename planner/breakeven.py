"""When another way to pay costs less than the plan's: spot machines, a commitment, machines of one's own.

Prices are the catalog's or the user's; where one is missing the answer is unknown, and names what to give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from . import catalog
from .billing import HOURS_PER_MONTH, HOURS_PER_YEAR
from .candidate import Candidate, assess
from .cost import run_cost
from .documents import answered, summary
from .efficiency import value
from .errors import InputError
from .hardware import Offer, Tier
from .machines import offers_for
from .quotes import Quotes, flag
from .request import Request
from .terms import PLAIN

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
        return answered(self.request, self.candidate, breakeven=[row.to_dict() for row in self.rows])


def break_evens(
    chosen: Candidate, request: Request, quotes: Quotes, spot_plan: Candidate | None
) -> tuple[BreakEven, ...]:
    """Spot on the plan's machines, spot planned anew, a commitment, buying.

    Args:
        chosen: the plan.
        request: of the plan; says where prices are read.
        quotes: the user's prices.
        spot_plan: the cheapest plan on spot machines, whatever machines these are; None: there is none.

    Raises:
        InputError: a quote out of range.
    """
    quotes.check()
    same = _spot_same(chosen, request, quotes)
    anew = () if spot_plan is None or _alike(spot_plan, same.candidate) else (_spot(chosen, spot_plan),)
    return (same, *anew, _reserved(chosen, request, quotes), _buying(chosen, request, quotes))


def _alike(one: Candidate, other: Candidate | None) -> bool:
    return other is not None and (one.offer.name, one.gpus, one.stack.names) == (
        other.offer.name,
        other.gpus,
        other.stack.names,
    )


def spot_interval_h(spot: Candidate, usd: float) -> float:
    """Hours between interruptions of one spot node at which the spot run costs as much as a run that costs ``usd``.

    Formula: bill(hours(H)) = usd, solved for H by bisection. hours is that of `run`, with its checkpoint interval, its
    restarts and 1/M = G / MTBF + nodes^a / H; more interruptions never make a run shorter.

    Args:
        spot: a plan on spot machines.
        usd: USD of the other run, all included.

    Returns:
        Hours; infinite where spot costs more even if nothing is ever interrupted.
    """

    def cheaper(interval_h: float) -> bool:
        return _bill_usd(spot, interval_h) <= usd

    if not cheaper(LONGEST_H):
        return math.inf
    low, high = math.log(SHORTEST_H), math.log(LONGEST_H)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if cheaper(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _bill_usd(spot: Candidate, interval_h: float) -> float:
    """USD of a spot run whose nodes are taken away once in so many hours; infinite where it does not end."""
    workload = spot.setting.workload
    other = replace(workload, run=replace(workload.run, spot_interruption_h=interval_h))
    kept = spot.cost.run
    evaluation_s = spot.setting.evaluation_micro_steps * spot.time.forward_s
    bill = run_cost(other, spot.offer, spot.setting.nodes, spot.time.step_s, kept.saved, evaluation_s)
    return bill.usd if bill.run.ends else math.inf


def _spot(chosen: Candidate, spot: Candidate) -> BreakEven:
    """A spot plan against the plan, which is not on spot."""
    at = spot_interval_h(spot, chosen.cost.usd)
    assumed = value("spot", "hours_between_interruptions")
    return BreakEven(
        name=SPOT,
        value=at,
        unit="hours between interruptions of one node",
        pays=spot.cost.run.ends and assumed > at,
        candidate=spot,
        figures={"assumed_h": assumed, "spot_usd": spot.cost.usd, "plan_usd": chosen.cost.usd},
        source=f"{spot.offer.source}, {spot.offer.date}",
    )


def _spot_same(chosen: Candidate, request: Request, quotes: Quotes) -> BreakEven:
    """The plan's own machines and stack, on spot."""
    if chosen.offer.tier is Tier.SPOT:
        return _unknown(SPOT, "the plan is on spot machines; plan it without --tier spot to compare")
    offer = _quoted(chosen.offer, quotes.spot_usd_per_gpu_hour, Tier.SPOT) or _listed(chosen.offer, request, Tier.SPOT)
    if offer is None:
        return _unknown(SPOT, f"no spot price of {chosen.offer.name}; give --spot-usd-per-gpu-hour")
    spot = assess(offer, chosen.stack, chosen.setting, method=chosen.method, zero_stage=chosen.zero_stage)
    return _spot(chosen, spot)


def _quoted(offer: Offer, usd_per_gpu_hour: float | None, tier: Tier) -> Offer | None:
    """The same machine at the user's price."""
    if usd_per_gpu_hour is None:
        return None
    usd = usd_per_gpu_hour * offer.node.gpus
    return replace(offer, tier=tier, usd_per_hour=usd, terms=PLAIN, source="the user's price", date="as given")


def _listed(offer: Offer, request: Request, tier: Tier) -> Offer | None:
    """The same machine at the lowest price of another tier in the request's price list."""
    if request.owns:
        return None
    asked = replace(request, gpus=(offer.node.gpu.name,), tier=tier, cloud=None, region=None)
    try:
        same = [o for o in offers_for(asked) if o.name == offer.name]
    except InputError:  # no price of this tier at all
        return None
    cheapest = min(same, key=catalog.usd_per_gpu_hour, default=None)
    return replace(cheapest, node=offer.node) if cheapest else None


def reserved_share(reserved_usd: float, on_demand_usd: float) -> float:
    """Share of a commitment's term that must be used before it costs less than paying by the hour.

    Formula: reserved price / on-demand price, both per hour; a commitment is paid for its whole term.

    >>> reserved_share(1.2, 2.0)
    0.6
    """
    return reserved_usd / on_demand_usd


def _reserved(chosen: Candidate, request: Request, quotes: Quotes) -> BreakEven:
    """A commitment to the plan's machines, from the user's price or the price list's."""
    quoted = _quoted(chosen.offer, quotes.reserved_usd_per_gpu_hour, Tier.RESERVED)
    offer = quoted or _listed(chosen.offer, request, Tier.RESERVED)
    if offer is None:
        return _unknown(RESERVED, f"no reserved price of {chosen.offer.name}; give --reserved-usd-per-gpu-hour")
    price, per_gpu = catalog.usd_per_gpu_hour(offer), catalog.usd_per_gpu_hour(chosen.offer)
    term_h = quotes.term_h or offer.terms.commitment_hours or HOURS_PER_YEAR
    share = reserved_share(price, per_gpu)
    hours = share * term_h
    return BreakEven(
        name=RESERVED,
        value=share if share < 1 else math.inf,
        unit="share of the term in use",
        pays=share < 1 and chosen.cost.hours >= hours,
        figures={
            "hours": hours,
            "term_h": term_h,
            "this_run_h": chosen.cost.hours,
            "runs": hours / chosen.cost.hours,
            "reserved_usd_per_gpu_hour": price,
            "usd_per_gpu_hour": per_gpu,
        },
        source=f"{offer.source}, {offer.date}",
    )


def buying_hours(capital_usd: float, rent_usd_per_hour: float, running_usd_per_hour: float) -> float:
    """Hours of use of a node after which having bought it costs less than having rented it.

    Formula: capital / (rent - running cost), all for one node; infinite where running it costs as much as renting.
    Capital is the price and, over its years, hosting; running cost is kW x PUE x price of a kWh.

    >>> buying_hours(300_000, 24.0, 4.0)
    15000.0
    """
    saved = rent_usd_per_hour - running_usd_per_hour
    return capital_usd / saved if saved > 0 else math.inf


NEEDED = ("capital", "years", "power_kw", "pue", "usd_per_kwh")


def _buying(chosen: Candidate, request: Request, quotes: Quotes) -> BreakEven:
    """Nodes of one's own against the plan's rented ones."""
    if request.owns:
        return _unknown(BUYING, "the plan's price is your own; plan with catalog prices to compare")
    missing = [flag(name) for name in NEEDED if getattr(quotes, name) is None]
    if missing:
        return _unknown(BUYING, f"no price of a node of your own; give {', '.join(missing)}")
    capital, years, kw, pue, per_kwh = (float(getattr(quotes, name)) for name in NEEDED)
    rent, running, life_h = chosen.offer.usd_per_hour, kw * pue * per_kwh, years * HOURS_PER_YEAR
    hours = buying_hours(capital + (quotes.hosting_usd or 0.0) * years, rent, running)
    return BreakEven(
        name=BUYING,
        value=hours / HOURS_PER_MONTH if hours <= life_h else math.inf,
        unit="months of use",
        pays=hours <= life_h and chosen.cost.hours >= hours,
        figures={
            "share_of_life": hours / life_h,
            "life_h": life_h,
            "this_run_h": chosen.cost.hours,
            "rent_usd_per_node_hour": rent,
            "running_usd_per_node_hour": running,
            "capital_usd": capital * chosen.setting.nodes,
            "hosting_usd_per_year": (quotes.hosting_usd or 0.0) * chosen.setting.nodes,
            "nodes": chosen.setting.nodes,
        },
        source="the user's prices" + ("" if quotes.hosting_usd else "; space, staff and network are not counted"),
    )


def _unknown(name: str, needs: str) -> BreakEven:
    return BreakEven(name=name, needs=needs)
