"""Tables of the evidence page that rest on long runs: what the engine test compares, and what the traces gave."""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache

from trainplan.planner.ledger import Ledger

from ..integration import test_against_deepspeed_engine as engines
from .published import DATA

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]
STATE_SECTIONS = "WOG"


@cache
def compared() -> tuple[tuple[engines.Case, Ledger], ...]:
    """Every configuration that the engine test starts, with its ledger."""
    cases = (*engines.main_cases(), *engines.other_cases())
    found = ((case, engines.planned(case)) for case in cases)
    return tuple((case, candidate.ledger) for case, candidate in found if candidate is not None)


def engine_table() -> Rows:
    """Configurations and state lines by stage and offload."""
    configurations: Counter[tuple[int, str]] = Counter()
    lines: Counter[tuple[int, str]] = Counter()
    for case, ledger in compared():
        key = (case.stage, case.offload)
        configurations[key] += 1
        lines[key] += sum(entry.item.section[0] in STATE_SECTIONS for entry in ledger.entries)
    rows = [(f"ZeRO-{key[0]}", key[1], str(count), str(lines[key])) for key, count in configurations.items()]
    total = ("**all**", "", f"**{configurations.total()}**", f"**{lines.total()}**")
    return ("stage", "offload", "configurations", "state lines compared"), [*sorted(rows), total]


def trace_table() -> Rows:
    """Errors at the peak by model."""
    with (DATA / "trace_errors.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    shown = [(r["model"], r["rows"], f"{r['median_percent']} %", f"{r['worst_percent']} %") for r in rows]
    count, worst = sum(int(r["rows"]) for r in rows), max(float(r["worst_percent"]) for r in rows)
    total = ("**all**", f"**{count}**", "", f"**{worst} %**")
    return ("model", "rows", "median error", "worst error"), [*shown, total]
