"""The other plans: cheapest of each method, half and twice the GPUs, and what time costs in money."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..terms_files import constant
from ..units import duration, usd
from .table import table
from .words import METHODS, OLD_PRICES, Document, brief, hours, shortened, starred

SAME = ("gpus", "gpu", "offer", "method", "strategies", "micro_batch", "checkpointed_layers")
HEADER = ("GPUs", "time", "cost", "offer", "strategy")
DAY_H = 24


def alternatives_text(plan: Document) -> str:
    """Cheapest of each method; half and twice the GPUs. What is to be said about a row stands below, numbered."""
    found = plan["alternatives"]
    notes = list(dict.fromkeys(a["note"] for a in found if a["note"] and "gpus" in a))
    rows = [_alternative(a, plan["decision"], notes) for a in found]
    shown = table(rows, header=("", *HEADER), align="llrrll", indent="  ")
    return "\n".join(
        (
            f"Alternatives within the deadline\n{shown}",
            *(f"  [{n}] {note}" for n, note in enumerate(notes, 1)),
            *_old_prices(found),
        )
    )


def _alternative(row: Document, decision: Document, notes: Sequence[str]) -> tuple[str, ...]:
    """One row; why there is none, or that it is the plan itself."""
    if "gpus" not in row:
        return row["label"], "none", "", "", "", row["note"]
    label = f"{row['label']} [{notes.index(row['note']) + 1}]" if row["note"] else row["label"]
    return label, *_plan_cells(row), "this plan" if all(row[key] == decision[key] for key in SAME) else brief(row)


def _plan_cells(row: Document) -> tuple[str, ...]:
    return f"{row['gpus']} x {row['gpu']}", hours(row), usd(row["cost_usd"]), shortened(row["offer"]) + starred(row)


def _old_prices(rows: Iterable[Document]) -> tuple[str, ...]:
    """What a star means, where one is printed."""
    old = any("price_date" in row and starred(row) for row in rows)
    return (OLD_PRICES.format(days=constant("stale_after_days").value),) if old else ()


def frontier_text(plan: Document) -> str:
    """Time against money; each row says what a day less than the row above costs."""
    rows: Sequence[Document] = plan["frontier"]
    deadline = plan["request"]["deadline_s"]
    origin = "" if "deadline_s" in plan["request"]["given"] else ", the default; --deadline changes it"
    method = METHODS[plan["decision"]["method"]]
    title = f"What days cost: the cheapest plans with {method}, each in at most 2/3 of the time of the one above"
    dearer = ["", *(_day_sooner(before, row) for before, row in pairwise(rows))]
    cells = [
        (*_plan_cells(row)[:3], more, _plan_cells(row)[3], brief(row)) for row, more in zip(rows, dearer, strict=True)
    ]
    header = (*HEADER[:3], "a day sooner", *HEADER[3:])
    shown = table(cells, header=header, align="lrrrll", indent="  ")
    return "\n".join((title, f"  the deadline is {duration(deadline)}{origin}", shown, *_old_prices(rows)))


def _day_sooner(before: Document, row: Document) -> str:
    """Dollars per day saved against the row above."""
    saved_days = (before["hours"] - row["hours"]) / DAY_H
    return f"+{usd((row['cost_usd'] - before['cost_usd']) / saved_days)}" if saved_days > 0 else ""
