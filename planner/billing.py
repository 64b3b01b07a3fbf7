"""What a seller charges for nodes and hours: steps, minimums, commitments, and the user's own machines.

    h        hours of the run, on n nodes at p USD per node-hour
    billed   h rounded up to what is sold: minimum, whole steps, whole commitments; never below h
    USD      p n billed + storage + egress

Units are in the names. What a source does not state is None and is never taken for free: `unpriced` names it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .hardware import Offer
from .terms import Terms
from .units import usd

HOURS_PER_YEAR = 365.25 * 24
HOURS_PER_MONTH = HOURS_PER_YEAR / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line of a bill."""

    label: str
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a run is charged, and why."""

    usd: float
    billed_hours: float
    nodes: int
    upfront_usd: float  # of it, what is paid before the run starts
    lines: tuple[Item, ...]


def bill(offer: Offer, nodes: int, hours: float) -> Bill:
    """The bill of so many nodes for so many hours.

    Formula: p n billed(h) + storage_gib storage_rate h / month + egress_gib egress_rate, with n at least the terms'
    minimum. Never below `least_usd`, and never less for more hours or nodes.

    Args:
        offer: gives p, USD per node-hour, and the terms.
        nodes: n, whole nodes.
        hours: h, that the run takes.

    Returns:
        Dollars, billed hours and nodes, dollars due upfront, and lines that add up to the dollars.

    >>> from trainplan.planner.catalog import find_gpu, owned_offer
    >>> from dataclasses import replace
    >>> node = owned_offer(find_gpu("h100"), gpus_per_node=8, usd_per_gpu_hour=5)
    >>> days = replace(node, terms=Terms(billing_step_hours=24, upfront=True))
    >>> for line in bill(days, 2, 30).lines: print(f"{line.label}: {line.usd:,.0f}")
    30.0 h x 2 nodes x $40.00 per node-hour: 2,400
    18.0 h more, paid and not used: in steps of 24 h: 1,440
    """
    terms = offer.terms
    rented, billed = max(nodes, terms.minimum_nodes), terms.billed_hours(hours)
    return Bill(
        usd=bill_usd(offer, nodes, hours),
        billed_hours=billed,
        nodes=rented,
        upfront_usd=offer.usd_per_hour * rented * billed if terms.upfront else 0.0,
        lines=(*_node_lines(offer, nodes, rented, hours, billed), *_extra_lines(terms, hours)),
    )


def bill_usd(offer: Offer, nodes: int, hours: float) -> float:
    """The bill's dollars alone, which a search asks for thousands of times."""
    terms = offer.terms
    charged = offer.usd_per_hour * max(nodes, terms.minimum_nodes) * terms.billed_hours(hours)
    if terms.storage_gib is None and terms.egress_gib is None:
        return charged
    return charged + sum(line.usd for line in _extra_lines(terms, hours))


def _node_lines(offer: Offer, nodes: int, rented: int, hours: float, billed: float) -> list[Item]:
    """What the run uses, and what is paid beside it."""
    rate, plural = offer.usd_per_hour, "" if nodes == 1 else "s"
    lines = [Item(label=f"{hours:,.1f} h x {nodes} node{plural} x {usd(rate)} per node-hour", usd=rate * nodes * hours)]
    if billed > hours:
        label = f"{billed - hours:,.1f} h more, paid and not used: {offer.terms.granularity()}"
        lines.append(Item(label=label, usd=rate * nodes * (billed - hours)))
    if rented > nodes:
        label = f"{rented - nodes} more of at least {rented} nodes, paid and not used"
        lines.append(Item(label=label, usd=rate * (rented - nodes) * billed))
    return lines


def _extra_lines(terms: Terms, hours: float) -> list[Item]:
    """Storage and egress, where the user states an amount and the offer a rate."""
    lines = []
    if terms.storage_gib is not None and terms.storage_usd_per_gib_month is not None:
        rate = terms.storage_usd_per_gib_month
        label = f"storage: {terms.storage_gib:,g} GiB x ${rate:g} per GiB-month for {hours:,.1f} h"
        lines.append(Item(label=label, usd=terms.storage_gib * rate * hours / HOURS_PER_MONTH))
    if terms.egress_gib is not None and terms.egress_usd_per_gib is not None:
        label = f"egress: {terms.egress_gib:,g} GiB x ${terms.egress_usd_per_gib:g} per GiB"
        lines.append(Item(label=label, usd=terms.egress_gib * terms.egress_usd_per_gib))
    return lines


def least_usd(offer: Offer, nodes: int, hours: float) -> float:
    """Dollars that no bill is below, proportional to hours: p n h."""
    return offer.usd_per_hour * nodes * hours


def unpriced(terms: Terms) -> tuple[str, ...]:
    """What the run is known to need and the offer gives no price for.

    >>> unpriced(Terms(egress_gib=500))
    ('egress of 500 GiB',)
    """
    pairs = (
        ("storage", terms.storage_gib, terms.storage_usd_per_gib_month),
        ("egress", terms.egress_gib, terms.egress_usd_per_gib),
    )
    return tuple(f"{name} of {gib:,g} GiB" for name, gib, rate in pairs if gib and rate is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ownership:
    """What an own node costs its owner; nothing has a default, since nothing of it is free."""

    capital_usd_per_node: float
    years: float  # of useful life
    power_kw_per_node: float  # drawn while it trains, without cooling
    pue: float  # power of the building over power of its machines
    usd_per_kwh: float
    utilization: float  # share of its years in which the node is used
    hosting_usd_per_node_year: float | None = None  # space, staff, network; None: not counted, and said so

    @property
    def usd_per_node_hour(self) -> float:
        """What an hour of use costs.

        Formula: (C / Y + H) / (8766 U) + W PUE E, with C capital in USD, Y years, H hosting in USD per year, U the
        share of the hours that are used (those that are not are paid by those that are), W kW, E USD per kWh.

        >>> own = Ownership(capital_usd_per_node=250_000, years=4, power_kw_per_node=10, pue=1.3, usd_per_kwh=0.1,
        ...                 utilization=0.7)
        >>> round(own.usd_per_node_hour, 4) == round(250_000 / 4 / (8766 * 0.7) + 10 * 1.3 * 0.1, 4)
        True
        """
        yearly = self.capital_usd_per_node / self.years + (self.hosting_usd_per_node_year or 0.0)
        return yearly / (HOURS_PER_YEAR * self.utilization) + self.power_kw_per_node * self.pue * self.usd_per_kwh

    def text(self) -> str:
        """The arithmetic in one line."""
        hosting = self.hosting_usd_per_node_year
        counted = f" + {usd(hosting)} hosting a year" if hosting is not None else ""
        left_out = "" if hosting is not None else "; space, staff and network are not counted (--hosting-usd)"
        return (
            f"({usd(self.capital_usd_per_node)} / {self.years:g} years{counted}) / (8,766 h x {self.utilization:.0%} "
            f"used) + {self.power_kw_per_node:g} kW x PUE {self.pue:g} x ${self.usd_per_kwh:g} per kWh = "
            f"{usd(self.usd_per_node_hour)} per node-hour{left_out}"
        )
