"""What a plan says about its price: rows of its assumptions, its bill, and what a reader must check."""

from __future__ import annotations

from typing import Any

from .billing import bill, unpriced
from .hardware import Node, Offer
from .request import Request
from .staleness import age_days, flag, remark
from .units import GBIT_BYTES, usd

EXTRAS = ("storage_usd_per_gib_month", "egress_usd_per_gib")


def network_text(node: Node) -> str:
    """Bandwidth of a node and what it runs on."""
    if node.internode_bytes_per_s is None:
        return "unknown"
    fabric = node.fabric or "of a kind unknown, taken for a slow one"
    return f"{node.internode_bytes_per_s / GBIT_BYTES:,.0f} Gbit/s, {fabric}"


def origin(request: Request) -> str:
    """Who stated the machine and its price."""
    return "you" if request.owns or request.prices is not None else "catalog"


def price_assumptions(request: Request, offer: Offer) -> list[tuple[str, str, str]]:
    """(name, value, who said so) of the price, its terms, and what it leaves out."""
    who = origin(request)
    rate = f"{usd(offer.usd_per_hour)} ({offer.currency}) per node-hour"
    rows = [("price", f"{rate}, {offer.tier.value}, {offer.region or 'no region'}, {offer.date}", who)]
    if request.prices is not None:
        rows.append(("price list", f"{request.prices}, in place of the built-in offers", "you"))
    if request.ownership is not None:
        rows.append(("owned", offer.source, "you"))
    if not request.owns:
        rows.append(("billing", _terms(offer), who))
        rows += [("left out of the price", text, who) for text in [_left_out(offer)] if text]
    return rows


def _terms(offer: Offer) -> str:
    terms = offer.terms
    if terms.source:
        return f"{terms.text()}; {terms.source}"
    return terms.text() + ("; the source states no step and no minimum" if terms.states_nothing else "")


def _left_out(offer: Offer) -> str:
    """Storage and egress where the source gives no price; where it does, what they cost is the user's to say."""
    names = ("storage", "egress")
    unknown = [name for name, key in zip(names, EXTRAS, strict=True) if getattr(offer.terms, key) is None]
    return f"{' and '.join(unknown)}: the source states no price" if unknown else ""


def price_warnings(offer: Offer) -> list[str]:
    """That the price is old or undated, and what it does not hold though the user asked for it."""
    found = [f"{what}: {offer.name} states no price, so it is not in the cost" for what in unpriced(offer.terms)]
    return [remark(offer.date), *found] if flag(offer.date) else found


def price_facts(offer: Offer) -> dict[str, Any]:
    """What the decision says about its price."""
    return {
        "usd_per_node_hour": offer.usd_per_hour,
        "currency": offer.currency,
        "tier": offer.tier.value,
        "region": offer.region,
        "price_date": offer.date,
        "price_age_days": age_days(offer.date),
        "price_flag": flag(offer.date),
        "price_source": offer.source,
    }


def bill_document(offer: Offer, nodes: int, hours: float) -> dict[str, Any]:
    """What is charged and why."""
    found = bill(offer, nodes, hours)
    return {
        "billed_hours": found.billed_hours,
        "billed_nodes": found.nodes,
        "upfront_usd": found.upfront_usd,
        "terms": offer.terms.text(),
        "bill": [{"label": line.label, "usd": line.usd} for line in found.lines],
    }
