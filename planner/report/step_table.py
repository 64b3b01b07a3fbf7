"""One optimizer step term by term, and how hours and dollars follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..units import HOUR_S, duration, usd
from .table import apportioned, table
from .words import Document

IN_MILLISECONDS_S = 10.0  # steps shorter than this are printed in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """All terms of one name: seconds per step, how many of them lengthen the step, and what limits them."""

    name: str
    busy_s: float
    exposed_s: float
    limited_by: tuple[str, ...]


def joined(terms: Iterable[Document]) -> tuple[Term, ...]:
    """One row per name, its resources by how long they are busy; what lengthens the step most comes first."""
    groups: dict[str, list[Document]] = {}
    for term in terms:
        groups.setdefault(term["name"], []).append(term)
    rows = [_one(name, group) for name, group in groups.items()]
    return tuple(sorted(rows, key=lambda t: (-t.exposed_s, -t.busy_s, t.name)))


def _one(name: str, group: list[Document]) -> Term:
    ordered = sorted(group, key=lambda t: -t["seconds_per_step"])
    return Term(
        name=name,
        busy_s=sum(t["seconds_per_step"] for t in group),
        exposed_s=sum(t["exposed_s"] for t in group),
        limited_by=tuple(dict.fromkeys(t["limited_by"] for t in ordered if t["seconds_per_step"] > 0)),
    )


def step_text(time: Document) -> str:
    """Terms, longest first; what hides behind others adds nothing to the step."""
    tenth_s, unit = (1e-4, "ms") if time["step_s"] < IN_MILLISECONDS_S else (0.1, "s")
    terms = joined(time["terms"])
    shown = apportioned([t.exposed_s for t in terms], tenth_s)
    rows = [
        _row(term, tenths, tenth_s, time["step_s"])
        for term, tenths in zip(terms, shown, strict=True)
        if term.busy_s >= tenth_s / 2
    ]
    total = ("one optimizer step", "", f"{time['step_s'] / tenth_s / 10:,.1f}", "", "")
    header = ("", f"busy {unit}", f"adds {unit}", "share", "limited by")
    lines = table(rows, header=header, footer=total, align="lrrrl", indent="  ")
    return f"Step time: {_rates(time)}\n{lines}\n{_grounds(time, unit, tenth_s)}"


def _row(term: Term, tenths: int, tenth_s: float, step_s: float) -> tuple[str, ...]:
    """One term; what it adds was rounded so that the sum is right, and is never more than it is busy."""
    busy = max(tenths, round(term.busy_s / tenth_s))
    share = f"{term.exposed_s / step_s:.1%}"
    return term.name, f"{busy / 10:,.1f}", f"{tenths / 10:,.1f}", share, ", ".join(term.limited_by)


def _grounds(time: Document, unit: str, tenth_s: float) -> str:
    """The step's band, and how the figures behind it are known."""
    low, upper = (time[key] / tenth_s / 10 for key in ("step_s_low", "step_s_upper"))
    shares = ", ".join(f"{share:.0%} {kind}" for kind, share in time["rests_on"].items() if share >= SMALLEST_SHARE)
    return f"  8 of 10 runs: {low:,.1f} to {upper:,.1f} {unit}; rests on figures {shares}"


SMALLEST_SHARE = 0.005


def _rates(time: Document) -> str:
    mfu = "unknown" if time["mfu"] is None else f"{time['mfu']:.1%}"
    return f"{duration(time['step_s'])}, {time['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU, MFU {mfu}"


def bill_text(time: Document, cost: Document, nodes: int) -> str:
    """From one step to hours, from hours to dollars."""
    computing_h = time["steps"] * time["step_s"] / HOUR_S
    lost = 1 - computing_h / cost["hours"]
    digits = 2 if time["step_s"] < IN_MILLISECONDS_S else 1
    run_h = f"{_amount(cost['hours'])} h"
    return (
        f"Time and money\n"
        f"  {time['steps']:,} steps x {time['step_s']:,.{digits}f} s = {_amount(computing_h)} h of training; "
        f"with {lost:.1%} for all that surrounds it {run_h}\n"
        f"{_charged(cost, nodes, run_h)}; "
        f"{_amount(cost['gpu_hours'], whole=True)} GPU-hours, "
        f"{usd(cost['usd_per_million_tokens'])} per million tokens\n"
        f"  8 of 10 runs: {_amount(cost['hours_low'])} to {_amount(cost['hours_upper'])} h, "
        f"{usd(cost['usd_low'])} to {usd(cost['usd_upper'])}"
    )


def _amount(hours: float, *, whole: bool = False) -> str:
    """Hours; of short runs two digits.

    >>> _amount(155.72), _amount(0.0414), _amount(623.4, whole=True), _amount(0.33, whole=True)
    ('155.7', '0.041', '623', '0.33')
    """
    if hours >= (SHORT_H * 10 if whole else SHORT_H):
        return f"{hours:,.0f}" if whole else f"{hours:,.1f}"
    return f"{hours:.2g}"


SHORT_H = 1.0


def _charged(cost: Mapping[str, Any], nodes: int, run_h: str) -> str:
    """Hours times nodes times the rate; line by line where more than that is charged."""
    if len(cost["bill"]) == 1:
        plural, rate = "s" if nodes > 1 else "", usd(cost["usd_per_node_hour"])
        upfront = ", paid upfront" if cost["upfront_usd"] else ""
        return f"  {run_h} x {nodes} node{plural} x {rate} per node-hour = {usd(cost['usd'])}{upfront}"
    lines = "\n".join(f"  {line['label']}: {usd(line['usd'])}" for line in cost["bill"])
    upfront = f", of which {usd(cost['upfront_usd'])} upfront" if cost["upfront_usd"] else ""
    return f"{lines}\n  in all {usd(cost['usd'])}{upfront}"
