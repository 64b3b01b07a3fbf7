"""What becomes of a decision where its assumptions fail, as people read it, from the JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from ..units import usd
from .table import table
from .text import decision_line
from .words import METHODS, Document, brief, hours

HEADER = ("what if", "time", "cost", "change", "MFU", "the decision")
WHY_WIDTH = 94  # characters, so that a line with its label stays within 120


def sensitivity_text(found: Document) -> str:
    """The decision, the verdict, one row a case, and what each case assumes."""
    rows: Sequence[Document] = found["scenarios"]
    d = found["decision"]
    base = ("as assumed", hours(d), usd(d["cost_usd"]), "", _share(found["mfu"]), _decided(d))
    shown = table([base, *(_row(row, d) for row in rows)], header=HEADER, align="lrrrrl", indent="  ")
    cases = [(row["label"] if first else "", line) for row in rows for first, line in _why(row)]
    return (
        f"{decision_line(found['model'], d)}\n{verdict(rows)}\n\n"
        f"Solved again, each case with its own inputs\n{shown}\n\n{_keeping(rows)}"
        f"What each case assumes\n{table(cases, align='ll', indent='  ')}"
    )


def verdict(rows: Sequence[Document]) -> str:
    """In how many cases the decision is the same, and in which it is not.

    >>> verdict([{"label": "price +20 %", "holds": True}, {"label": "MFU -25 %", "holds": False}])
    'the decision holds in 1 of 2 cases, not under MFU -25 %'
    """
    held, others = sum(row["holds"] for row in rows), [row["label"] for row in rows if not row["holds"]]
    return f"the decision holds in {held} of {len(rows)} cases" + (f", not under {', '.join(others)}" if others else "")


def _row(row: Document, before: Document) -> tuple[str, ...]:
    """One case."""
    now = row["decision"]
    if now is None:
        return row["label"], "none", "", "", "", row["stops"]
    change = now["cost_usd"] / before["cost_usd"] - 1 if before["cost_usd"] else 0.0
    decided = "the same" if row["holds"] else _decided(now)
    return row["label"], hours(now), usd(now["cost_usd"]), f"{change:+.1%}", _share(row["mfu"]), decided


def _keeping(rows: Sequence[Document]) -> str:
    """What becomes of the old decision in the cases that change it; nothing where it always holds."""
    cells = [
        (row["label"], hours(k := row["kept"]), usd(k["cost_usd"]), _kept(row)) for row in rows if not row["holds"]
    ]
    shown = table(cells, header=("what if", "time", "cost", ""), align="lrrl", indent="  ")
    return f"Keeping the old decision\n{shown}\n\n" if cells else ""


def _kept(row: Document) -> str:
    """Which limits it breaks, or what it costs more."""
    if row["kept"]["breaks"]:
        return "; ".join(row["kept"]["breaks"])
    if row["regret_usd"] is None:
        return f"breaks no limit, still {METHODS[row['kept']['method']]}"
    return f"{usd(row['regret_usd'])} more than the new one"


def _decided(d: Document) -> str:
    return f"{d['gpus']} x {d['gpu']}, {d['method']}, {brief(d)}"


def _share(mfu: float | None) -> str:
    return "unknown" if mfu is None else f"{mfu:.1%}"


def _why(row: Document) -> list[tuple[bool, str]]:
    """Whether a line is a case's first, and the line."""
    lines = wrap(f"{row['why']}; {row['kind']}: {row['source']}", WHY_WIDTH)
    return [(index == 0, line) for index, line in enumerate(lines)]
