"""When another way to pay costs less, as people read it, from the JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import wrap

from ..units import DAY_S, HOUR_S, duration, usd
from .table import table
from .text import decision_line
from .words import Document, brief, hours, price

WIDTH = 104  # characters, so that a line with its name stays within 120
YEAR_DAYS = 365.25


def breakeven_text(found: Document) -> str:
    """The plan, and one paragraph for each other way to pay."""
    d = found["decision"]
    rows = [(name, line) for row in found["breakeven"] for name, line in _lines(row, d)]
    paid = "\n            ".join(wrap(price(d), WIDTH))
    return (
        f"{decision_line(found['model'], d)}\n  price     {paid}\n\n"
        f"Break-even against this plan\n{table(rows, align='ll', indent='  ')}"
    )


def _lines(row: Document, d: Document) -> Iterator[tuple[str, str]]:
    """The name of a way to pay, and its sentences."""
    text = f"unknown: {row['needs']}" if row["needs"] else _SENTENCES[row["name"]](row, d)
    source = [f"price: {row['source']}"] if row["source"] else []
    for index, line in enumerate(line for part in (text, *source) for line in wrap(part, WIDTH)):
        yield (row["name"] if not index else ""), line


def _spot(row: Document, d: Document) -> str:
    plan, f = row["plan"], row["figures"]
    machines = f"{plan['gpus']} x {plan['gpu']} of {plan['offer']}"
    where = "on the same machines" if plan["offer"] == d["offer"] else f"planned anew, {machines}, {brief(plan)}"
    bill = f"{usd(f['spot_usd'])} in {hours(plan)} instead of {usd(f['plan_usd'])}"
    if row["never"]:
        return f"never pays {where}: dearer even if nothing is interrupted; {bill}"
    verdict = "pays" if row["pays"] else "does not pay"
    interval = f"one interruption of a node every {duration(row['value'] * HOUR_S)}"
    assumed = f"assumed is one every {duration(f['assumed_h'] * HOUR_S)}: {verdict}, {bill}"
    return f"{where}, the same bill at {interval}; {assumed}"


def _reserved(row: Document, d: Document) -> str:
    f = row["figures"]
    prices = f"{usd(f['reserved_usd_per_gpu_hour'])} against {usd(f['usd_per_gpu_hour'])} per GPU-hour"
    if row["never"]:
        return f"never pays: {prices}"
    term = duration(f["term_h"] * HOUR_S)
    used = f"pays above {row['value']:.1%} of a term of {term} in use, {f['hours']:,.0f} h: {prices}"
    return f"{used}; this run uses {f['this_run_h'] / f['term_h']:.1%}, so {f['runs']:,.1f} such runs a term"


def _buying(row: Document, d: Document) -> str:
    f = row["figures"]
    rent = f"{usd(f['rent_usd_per_node_hour'])} rent against {usd(f['running_usd_per_node_hour'])} for power an hour"
    life = f"{f['life_h'] * HOUR_S / DAY_S / YEAR_DAYS:g} years"
    if row["never"]:
        return f"never pays within its life of {life}: {rent}"
    months = f"pays after {row['value']:,.1f} months of use ({f['share_of_life']:.0%} of its life of {life})"
    run = f"this run is {f['this_run_h'] * HOUR_S / DAY_S:,.1f} d"
    hosting = f" and {usd(f['hosting_usd_per_year'])} a year" if f["hosting_usd_per_year"] else ""
    return f"{months}: {rent}, {usd(f['capital_usd'])}{hosting} for {f['nodes']:,} nodes; {run}"


_SENTENCES = {"spot": _spot, "reserved": _reserved, "buying": _buying}
