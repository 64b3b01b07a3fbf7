"""One optimizer step term by term, and how hours and dollars follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    short = time["step_s"] < IN_MILLISECONDS_S
    unit_s, name = (1e-4, "ms") if short else (0.1, "s")
    terms = joined(time["terms"])
    shown = apportioned([t.exposed_s for t in terms], unit_s)
    rows = [
        (t.name, f"{max(tenths, round(t.busy_s / unit_s)) / 10:,.1f}", f"{tenths / 10:,.1f}", f"{t.exposed_s / time['step_s']:.1%}", ", ".join(t.limited_by))
        for t, tenths in zip(terms, shown, strict=True)
        if t.busy_s >= unit_s / 2
    ]  # fmt: skip
    total = ("one optimizer step", "", f"{time['step_s'] / unit_s / 10:,.1f}", "", "")
    header = ("", f"busy {name}", f"adds {name}", "share", "limited by")
    return f"Step time: {_rates(time)}\n" + table(rows, header=header, footer=total, align="lrrrl", indent="  ")


def _rates(time: Document) -> str:
    mfu = "unknown" if time["mfu"] is None else f"{time['mfu']:.1%}"
    return f"{duration(time['step_s'])}, {time['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU, MFU {mfu}"


def bill_text(time: Document, cost: Mapping[str, float], nodes: int) -> str:
    """From one step to hours, from hours to dollars."""
    computing_h = time["steps"] * time["step_s"] / HOUR_S
    lost = 1 - computing_h / cost["hours"]
    return (
        "Time and money\n"
        f"  {time['steps']:,} steps x {time['step_s']:,.{2 if time['step_s'] < IN_MILLISECONDS_S else 1}f} s = {computing_h:,.1f} h of training; "
        f"{lost:.1%} of the run goes to start-up, data, checkpoints and failures: {cost['hours']:,.1f} h\n"
        f"  {cost['hours']:,.1f} h x {nodes} node{'s' if nodes > 1 else ''} x {usd(cost['usd_per_node_hour'])} per node-hour "
        f"= {usd(cost['usd'])}, {cost['gpu_hours']:,.0f} GPU-hours, {usd(cost['usd_per_million_tokens'])} per million tokens"
    )
