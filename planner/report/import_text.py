"""What an import read, wrote and left out, by reason, with an example each."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from ..hardware import Tier
from ..importers.listed import NO_GPUS, REPAIRS, Imported, Noted, Reason
from ..staleness import flag
from .table import table

EXAMPLES = 3  # of each reason, in JSON


def import_document(found: Imported, path: str) -> dict[str, Any]:
    """JSON values; counts of what was left out, with a few examples of each reason."""
    return {
        "schema_version": 1,
        "program": found.program,
        "written": path,
        "rows_read": found.rows,
        "sources": [
            {"cloud": s.cloud, "citation": s.citation, "date": s.date, "price_flag": flag(s.date), "rows": s.rows}
            for s in found.sources
        ],
        "prices": {tier.value: sum(1 for p in found.priced if p.tier is tier) for tier in (Tier.ON_DEMAND, Tier.SPOT)},
        "left_out": [_reason(reason, found.noted) for reason in _reasons(found) if reason not in REPAIRS],
        "repaired": [_reason(reason, found.noted) for reason in _reasons(found) if reason in REPAIRS],
    }


def _reasons(found: Imported) -> list[Reason]:
    """The most frequent first; what is no GPU machine last."""
    counts = Counter(note.reason for note in found.noted)
    return sorted(counts, key=lambda reason: (reason in NO_GPUS, -counts[reason], reason.name))


def _reason(reason: Reason, noted: tuple[Noted, ...]) -> dict[str, Any]:
    notes = [note for note in noted if note.reason is reason]
    examples = [f"{note.where}, {note.what}" for note in notes[:EXAMPLES]]
    return {"reason": reason.name.lower(), "text": reason.value, "count": len(notes), "examples": examples}


def import_text(document: dict[str, Any]) -> str:
    """For people: what was read, what is offered, what is not and why, and how to use it."""
    sources = [
        (s["citation"], f"{s['rows']:,} rows", s["date"] + (f", {s['price_flag']}" if s["price_flag"] else ""))
        for s in document["sources"]
    ]
    counts = ", ".join(f"{number:,} {tier}" for tier, number in document["prices"].items())
    parts = [f"Read {document['rows_read']:,} rows\n{table(sources, align='lrl', indent='  ')}"]
    parts += [_listed(title, document[key]) for title, key in (("Left out", "left_out"), ("Repaired", "repaired"))]
    path = shlex.quote(document["written"])
    parts.append(f"Wrote {path}: {counts} prices\n  use it: trainplan --model 70b --prices {path}")
    return "\n\n".join(part for part in parts if part)


def _listed(title: str, reasons: list[dict[str, Any]]) -> str:
    lines = [f"  {r['count']:>7,}  {r['text']}\n           e.g. {r['examples'][0]}" for r in reasons]
    return "\n".join([title, *lines]) if lines else ""
