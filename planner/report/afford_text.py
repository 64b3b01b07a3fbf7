"""What a budget buys, as people read it, from the JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from ..units import count, duration, usd
from .table import table
from .words import Document, brief, hours, shortened

PLAN = ("time", "cost", "GPUs", "offer", "strategy")
NONE_FITS = "none"
OFFER_WIDTH = 18
WIDTH = 118  # characters of a line


def afford_text(found: Document) -> str:
    """The budget, and a table for each question."""
    answers: Sequence[Document] = found["answers"]
    parts = [
        _section(title, head, answers, question)
        for question, (title, head) in _titles(found).items()
        if any(a["question"] == question for a in answers)
    ]
    return "\n\n".join([_headline(found), *parts, *_notes(found)])


def _headline(found: Document) -> str:
    r = found["request"]
    kinds = ", ".join(r["gpus"])
    machines = f"{r['gpu_count']} x {kinds}" if r["gpu_count"] else "any GPUs" if kinds == "any" else kinds
    whom = f" for {found['model']}" if found["model"] else ""
    origin = "" if "deadline_s" in r["given"] else " (the default)"
    return f"What {usd(r['budget'])} buys{whom} on {machines} within {duration(r['deadline_s'])}{origin}"


def _titles(found: Document) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Heading and first columns of each question's table."""
    r = found["request"]
    return {
        "largest model": ("The largest model of the catalog", ("method", "model", "parameters", "tokens")),
        "most tokens": (f"The most tokens, in sequences of {r['seq_len']:,}", ("method", "tokens")),
        "longest context": (
            f"The longest context, on {count(r['tokens'])} tokens, in batches of about {count(found['batch_tokens'])}",
            ("method", "context", "sequences"),
        ),
    }


def _section(title: str, head: tuple[str, ...], answers: Sequence[Document], question: str) -> str:
    """The answers to one question; a table with models has no room for offers."""
    rows = [a for a in answers if a["question"] == question]
    names, shown_plan = (2, (0, 1, 2, 4)) if head[1] == "model" else (1, (0, 1, 2, 3, 4))
    cells = [(*_first(a, len(head)), *(_plan(a["plan"])[i] for i in shown_plan)) for a in rows]
    header = (*head, *(PLAN[i] for i in shown_plan))
    align = ("l" * names).ljust(len(head) + 2, "r").ljust(len(header), "l")
    shown = table(cells, header=header, align=align, indent="  ")
    stops = table([(a["method"], _stops(a)) for a in rows], align="ll", indent="  ")
    return f"{title}\n{shown}\n  what stops more\n{stops}"


def _first(a: Document, number: int) -> tuple[str, ...]:
    """The columns that answer."""
    if a["plan"] is None:
        return (a["method"], NONE_FITS, *[""] * (number - 2))
    return {
        "largest model": (a["method"], a["model"], count(a["parameters"]), _tokens(a)),
        "most tokens": (a["method"], f"{a['tokens']:,}"),
        "longest context": (a["method"], f"{a['seq_len']:,}", f"{a['global_batch']:,}"),
    }[a["question"]]


def _tokens(a: Document) -> str:
    return f"{count(a['tokens'])}{' [1]' if a['tokens_note'] else ''}"


def _plan(plan: Document | None) -> tuple[str, ...]:
    if plan is None:
        return ("",) * len(PLAN)
    machines = f"{plan['gpus']} x {plan['gpu']}"
    return hours(plan), usd(plan["cost_usd"]), machines, shortened(plan["offer"], OFFER_WIDTH), brief(plan)


def _stops(a: Document) -> str:
    return f"{a['next']}: {a['stops']}" if a["next"] else a["stops"]


def _notes(found: Document) -> list[str]:
    """What the answers rest on."""
    notes, rule = list[str](), found["tokens_rule"]
    ruled = [a for a in found["answers"] if a["tokens_note"]]
    if ruled:
        mixture = ", and this is a mixture of experts" if any(a.get("mixture") for a in ruled) else ""
        notes.append(f"[1] {rule['value']:g} {rule['unit']}{mixture}; --tokens says otherwise; {rule['source']}")
    if found["skipped"]:
        number, length = len(found["skipped"]), found["request"]["seq_len"]
        notes.append(f"{number} models of the catalog take no sequences of {length:,} tokens and were left out")
    lines = [line for note in notes for line in wrap(note, WIDTH, initial_indent="  ", subsequent_indent="      ")]
    return ["\n".join(lines)] if lines else []
