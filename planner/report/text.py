"""A plan as people read it, from its JSON document: the same text whether it was just made or read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from ..staleness import flag
from ..units import GIGA, HOUR_S, TERA, count, duration, gib, usd
from .memory_tables import memory_text
from .plan_tables import alternatives_text, frontier_text
from .run_table import run_text
from .step_table import bill_text, step_text
from .table import table
from .words import Document, batch, hours, machines, method_name, phase_name, price, strategy

ASSUMED_WIDTH = 80  # of a value, between its name and who said so
FACT_WIDTH = 104  # characters, so that a line with its name stays within 120
NO_LIMIT_BINDS = "no limit is close: the price of the computation decides"


def plan_text(plan: Document) -> str:
    """The whole report; the decision is its first line."""
    d = plan["decision"]
    return _sections(
        headline(plan),
        memory_text(plan["memory"]),
        step_text(plan["time"]),
        bill_text(plan["time"], plan["cost"], d["nodes"]),
        run_text(plan["cost"]),
        alternatives_text(plan),
        frontier_text(plan),
        f"Assumptions\n{assumptions_table(plan['assumptions'])}",
        "What binds\n" + "\n".join(f"  {line}" for line in binding_lines(plan)),
        f"Solver: {solver_line(plan['solver'])}",
    )


def _sections(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def decision_line(name: str, d: Document) -> str:
    """How many of which GPUs, how long, how much, with which strategy: one line."""
    return f"{name}, {method_name(d)}: {d['gpus']} x {d['gpu']}, {hours(d)}, {usd(d['cost_usd'])}; {strategy(d)}"


def headline(plan: Document) -> str:
    """The decision in one line, the machine, the batch, and what was given up for it."""
    d, model = plan["decision"], plan["model"]
    trained = f"{count(model['trainable_parameters'])} of {count(model['parameters'])} parameters"
    rows = (
        ("model", model.get("note") or model["source"][:90]),
        ("machine", machines(d)),
        ("price", price(d)),
        ("batch", batch(d)),
        ("trained", trained),
        ("given up", plan["given_up"]),
        *(("note", line) for line in plan.get("warnings", ())),
    )
    return f"{decision_line(model['name'], d)}\n{_facts(rows)}"


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    """One fact a row, long ones over several lines."""
    cells = [(name if first else "", line) for name, text in rows for first, line in _numbered(wrap(text, FACT_WIDTH))]
    return table(cells, align="ll", indent="  ")


def _numbered(lines: Iterable[str]) -> Iterable[tuple[bool, str]]:
    """Each line, and whether it is the first."""
    return ((index == 0, line) for index, line in enumerate(lines))


LIMITS = ("deadline", "budget", "GPUs at most")  # of a search: one configuration has none


def assumptions_table(rows: Iterable[Document]) -> str:
    """What the answer rests on and who said so."""
    cells = [
        (a["name"] if first else "", line, f"({a['from']})" if first else "")
        for a in rows
        for first, line in _numbered(wrap(a["value"], ASSUMED_WIDTH))
    ]
    return table(cells, align="lll", indent="  ")


def binding_lines(plan: Document) -> Sequence[str]:
    """Tight constraints, or that there are none."""
    return plan["binding"] or [NO_LIMIT_BINDS]


def solver_line(s: Document) -> str:
    """The certificate in words."""
    columns = f"{s['columns']:,} columns, {s['columns_in_program']:,} left by bounds"
    return (
        f"{s['solver']} {s['version']}, {s['status']}, gap {s['gap']:.1e}; {columns}, "
        f"{s['refuted_points']} refuted by the exact ledger, {s['seconds']:.2f} s"
    )


def estimate_text(found: Document) -> str:
    """One fixed configuration; whether it fits comes first."""
    d, memory = found["configuration"], found["memory"]
    fits = all(memory[device]["fits"] for device in ("gpu", "host", "nvme"))
    rows = (
        ("model", found["model"].get("note") or found["model"]["source"][:90]),
        ("machine", machines(d)),
        ("price", price(d)),
        ("batch", batch(d)),
        *(("note", line) for line in found["warnings"]),
    )
    verdict = "fits" if fits else "does not fit"
    unasked = (*LIMITS, *(("adapters (LoRA, QLoRA)",) if d["method"] == "full" else ()))
    assumed = [row for row in found["assumptions"] if row["name"] not in unasked]
    return _sections(
        f"{verdict}: {decision_line(found['model']['name'], d)}\n{_facts(rows)}",
        memory_text(memory),
        step_text(found["time"]),
        bill_text(found["time"], found["cost"], d["nodes"]),
        run_text(found["cost"]),
        f"Assumptions\n{assumptions_table(assumed)}",
        "Limits\n" + "\n".join(f"  {line}" for line in found["constraints"]),
    )


def stack_text(plan: Document) -> str:
    """The stack, one transform per row, and below it the DeepSpeed keys that each row stands for."""
    rows, before = [], None
    for row in plan["stack"]:
        allocated, step = _change(before, row, "allocated_bytes"), _change(before, row, "step_s")
        host = gib(row["host_bytes_per_node"])
        name = f"{'+ ' if before else ''}{row['strategy']}"
        rows.append((name, gib(row["allocated_bytes"]), allocated, host, duration(row["step_s"]), step))
        before = row
    header = ("strategy", "GPU tensors", "change", "host RAM per node", "step", "change")
    keys = [
        (row["strategy"], "\n".join(f"  {key} = {value}" for key, value in row["deepspeed"].items()))
        for row in plan["stack"]
        if row["deepspeed"]
    ]
    listed = "\n".join(f"{name}\n{lines}" for name, lines in keys)
    return f"{table(rows, header=header, align='lrrrrr')}\n\nDeepSpeed keys by strategy\n{listed}"


def _change(before: Document | None, row: Document, key: str) -> str:
    if before is None or not before[key]:
        return ""
    change = row[key] / before[key] - 1
    return "" if abs(change) < 0.0005 else f"{change:+.1%}"


def lines_text(plan: Document, wanted: str) -> str:
    """Arithmetic, phases, certainty and source of every line of memory, step and run whose name or section matches."""
    needle = wanted.lower().strip().lstrip("§")
    memory = [(device, e) for device in ("gpu", "host", "nvme") for e in plan["memory"][device]["entries"]]
    lines = [_line(device, e) for device, e in memory if needle in e["item"].lower() or needle == e["section"].lower()]
    terms = [_term(t) for t in plan["time"]["terms"] if needle in t["name"].lower() or needle == t["limited_by"]]
    return "\n".join(
        lines + terms + [_run_line(r) for r in plan["cost"]["run"]["lines"] if needle in r["name"].lower()]
    )


def _line(device: str, e: Document) -> str:
    upper = f"; upper bound {gib(e['upper_bytes'])}" if e["upper_bytes"] != e["bytes"] else ""
    return (
        f"{e['item']} (§{e['section']}, {device}): {gib(e['bytes'])} = {e['bytes']:,} B per rank\n"
        f"  arithmetic: {e['why']}\n"
        f"  alive in: {', '.join(map(phase_name, e['phases']))}\n"
        f"  known: {e['certainty']}{upper}" + (f"\n  source: {e['source']}" if e["source"] else "")
    )


def _term(t: Document) -> str:
    known = f"  rests on: {t['figure']}, {t['kind']}\n" if t.get("figure") else ""
    if t.get("amount") and t["seconds_per_step"] > 0:
        known = f"  arithmetic: {_amount(t)}\n{known}"
    return (
        f"{t['name']} (time, {t['limited_by']}): {duration(t['seconds_per_step'])} per step, "
        f"{duration(t['exposed_s'])} of it lengthen the step\n"
        f"{known}  source: {t['source'] or 'arithmetic on the work'}"
    )


def _amount(t: Document) -> str:
    """FLOPs, bytes or kernels, and the rate they are taken at.

    >>> _amount({"amount": 3e15, "seconds_per_step": 10.0, "limited_by": "matmul"})
    '3e+15 FLOPs a step at 300 TFLOP/s'
    """
    amount, rate = t["amount"], t["amount"] / t["seconds_per_step"]
    if t["limited_by"] in ("matmul", "attention"):
        return f"{amount:.4g} FLOPs a step at {rate / TERA:,.4g} TFLOP/s"
    if t["limited_by"] == "kernel launches":
        return f"{amount:,.0f} kernels a step, {MICRO / rate:.3g} us each"
    return f"{amount / GIGA:,.4g} GB a step at {rate / GIGA:,.4g} GB/s"


MICRO = 1e6


def _run_line(r: Document) -> str:
    return (
        f"{r['name']} (the run): {duration(r['hours'] * HOUR_S)}, {r['share']:.1%} of it\n"
        f"  arithmetic: {r['why']}\n  source: {r['source']}"
    )


def line_names(plan: Document) -> Sequence[str]:
    """What ``explain --line`` knows."""
    items = {e["item"] for memory in plan["memory"].values() for e in memory["entries"]}
    others = (*plan["time"]["terms"], *plan["cost"]["run"]["lines"])
    return sorted(items | {row["name"] for row in others})


def refused_text(found: Document) -> str:
    """Which constraint rejects a choice, by how much, and the cheapest change."""
    lines = [f"not possible: {found['illegal']}"] if found["illegal"] else []
    lines += [f"rejected by {broken['text']}" for broken in found["broken"]] or ([] if lines else [_possible(found)])
    if found["cheapest_change"]:
        c = found["cheapest_change"]
        lines.append(f"cheapest change: {_run(c)}")
    elif found["status"] == "refused":
        lines.append("no change of strategy or micro-batch admits it")
    return "\n".join(lines)


def _possible(found: Document) -> str:
    d, dearer = found["configuration"], found["dearer_usd"] or 0.0
    verdict = f"{usd(dearer)} dearer than the plan"
    if dearer <= 0.005:
        verdict = "it breaks no limit and costs " + (
            "the same as the plan" if dearer > -0.005 else f"{usd(-dearer)} less than the plan"
        )
    return f"possible: {_run(d)}; {verdict}"


def _run(d: Document) -> str:
    old = flag(d["price_date"])
    said = f" (its price is {old})" if old else ""
    return f"{machines(d)}, {strategy(d)}, micro-batch {d['micro_batch']}: {hours(d)}, {usd(d['cost_usd'])}{said}"
