"""A plan as people read it, from its JSON document: the same text whether it was just made or read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..units import HOUR_S, count, duration, gib, usd
from .table import table

Document = Mapping[str, Any]
OFFLOADS = (
    "zero",
    "offload",
    "checkpointing",
    "chunked",
    "lion",
    "adamw-",
    "paged",
    "adafactor",
    "sgd",
    "eager",
    "fp16",
    "fp32",
)
SHOWN_OFFERS = 8


def plan_text(plan: Document) -> str:
    """The whole report."""
    sections = (
        headline(plan),
        *(f"note: {line}" for line in plan["warnings"]),
        f"\nGPU memory per GPU, peak in the {phase_name(plan['memory']['gpu']['fullest_phase'])} phase",
        gpu_table(plan["memory"]["gpu"]),
        f"\n{store_title('Host RAM', plan['memory']['host'])}",
        store_table(plan["memory"]["host"]),
        f"\n{store_title('NVMe', plan['memory']['nvme'])}",
        store_table(plan["memory"]["nvme"]),
        "\nStep time",
        time_table(plan["time"]),
        "\nAlternatives",
        alternatives_table(plan),
        "\nWhat time costs: the cheapest plans of this method under ever shorter deadlines",
        frontier_table(plan["frontier"]),
        "\nAssumptions",
        assumptions_table(plan["assumptions"]),
        "\nWhat binds",
        *(f"  {line}" for line in binding_lines(plan)),
        f"\nSolver: {solver_line(plan['solver'])}",
    )
    return "\n".join(section for section in sections if section)


def headline(plan: Document) -> str:
    """The decision in one line, and what was given up for it."""
    d = plan["decision"]
    trained = (
        f"{count(plan['model']['trainable_parameters'])} of {count(plan['model']['parameters'])} parameters trained"
    )
    return (
        f"{plan['model']['name']}: {machines(d)}, {method_name(d)}, {duration(d['hours'] * HOUR_S)}, {usd(d['cost_usd'])}\n"
        f"  strategy: {strategy(d)}; micro-batch {d['micro_batch']} x accumulation {d['gradient_accumulation_steps']} x {d['gpus']} GPUs\n"
        f"  given up: {plan['given_up']} ({trained})"
    )


def method_name(row: Document) -> str:
    """How a method is called in a sentence."""
    return {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[row["method"]]


def machines(d: Document) -> str:
    """GPUs, machines, offer."""
    nodes = "1 node" if d["nodes"] == 1 else f"{d['nodes']} nodes"
    return f"{d['gpus']} x {d['gpu']} on {nodes} of {d['offer']}"


def strategy(d: Document) -> str:
    """The parts of the stack that are a decision, with their numbers."""
    names = [n for n in d["strategies"] if n.startswith(OFFLOADS)]
    ratio = d.get("offload_ratio")
    shown = []
    for name in names:
        if name.startswith("checkpointing"):
            name = f"{name} of {d['checkpointed_layers']} layers"
        elif name == "offload-optimizer-cpu" and ratio is not None and ratio < 1:
            name = f"{name} ({ratio:.0%} of it)"
        shown.append(name)
    return ", ".join(shown) or "plain data parallelism"


def phase_name(phase: str) -> str:
    """How a phase is called."""
    return phase.replace("_", " ")


def gpu_table(memory: Document) -> str:
    """Lines alive in the fullest phase, then every phase, then the three totals against the capacity."""
    fullest = memory["fullest_phase"]
    alive = [e for e in memory["entries"] if fullest in e["phases"]]
    lines = [(e["item"], gib(e["bytes"]), f"§{e['section']}", e["why"]) for e in alive]
    phases = ", ".join(f"{phase_name(p)} {gib(size)}" for p, size in memory["phases"].items())
    spare = memory["capacity_bytes"] - memory["upper_bound_bytes"]
    verdict = f"fits with {gib(spare)} to spare" if memory["fits"] else f"does not fit, {gib(-spare)} short"
    totals = [
        ("allocated (tensors)", gib(memory["allocated_bytes"]), "", "sum of the lines above"),
        ("reserved (allocator)", gib(memory["reserved_bytes"]), "§F1", "with fragmentation"),
        (
            "on the device",
            gib(memory["device_bytes"]),
            "§F2",
            "with CUDA context and communicators: what nvidia-smi shows",
        ),
        (
            "upper bound",
            gib(memory["upper_bound_bytes"]),
            "",
            f"against {gib(memory['capacity_bytes'])} that the driver reports: {verdict}",
        ),
    ]
    return table(lines + totals, align="lrll") + f"\n  by phase: {phases}"


def store_title(name: str, memory: Document) -> str:
    """Needs and capacity of host RAM or NVMe, per node."""
    if not memory["upper_bound_bytes"]:
        return f"{name}: not used"
    has = "unknown" if memory["capacity_bytes"] is None else gib(memory["capacity_bytes"])
    verdict = "" if memory["capacity_bytes"] is None else (", fits" if memory["fits"] else ", does not fit")
    return f"{name} per node: {gib(memory['needed_bytes'])}, upper bound {gib(memory['upper_bound_bytes'])} of {has} usable{verdict}"


def store_table(memory: Document) -> str:
    """Lines of one node."""
    ranks = memory["ranks_per_node"]
    lines = [
        (e["item"], gib(e["bytes"] * ranks), f"§{e['section']}", f"{ranks} ranks x ({e['why']})")
        for e in memory["entries"]
    ]
    return table(lines, align="lrll")


def time_table(time: Document) -> str:
    """Terms of one optimizer step, longest first, and what comes out of them."""
    lines = [
        (
            t["name"],
            duration(t["seconds_per_step"]),
            "exposed" if t["exposed_s"] >= 0.999 * t["seconds_per_step"] else f"{duration(t['exposed_s'])} exposed",
            t["limited_by"],
        )
        for t in sorted(time["terms"], key=lambda t: -t["exposed_s"])
    ]
    mfu = "unknown" if time["mfu"] is None else f"{time['mfu']:.1%}"
    return (
        table(lines, align="lrrl")
        + f"\n  one step {duration(time['step_s'])} x {time['steps']:,} steps; {time['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU; MFU {mfu}"
    )


def plan_row(row: Document) -> tuple[str, ...]:
    """One plan as a table row."""
    return (
        f"{row['gpus']} x {row['gpu']}",
        row["method"],
        strategy({**row, "offload_ratio": None}),
        duration(row["hours"] * HOUR_S),
        usd(row["cost_usd"]),
        row["offer"],
    )


def alternatives_table(plan: Document) -> str:
    """Cheapest of each method; half and twice the GPUs."""
    rows = []
    for a in plan["alternatives"]:
        if "gpus" in a:
            rows.append((a["label"], *plan_row(a), f"({a['note']})" if a["note"] else ""))
        else:
            rows.append((a["label"], "none", "", a["note"], "", "", "", ""))
    return table(rows, align="lllrrrll".replace("lllrrrll", "llllrrll"))


def frontier_table(frontier: Sequence[Document]) -> str:
    """Time against money; each row says what a day sooner costs."""
    rows = []
    for before, row in zip([None, *frontier], frontier, strict=False):
        rows.append((*plan_row(row), _marginal(before, row)))
    return table(rows, align="lllrrll")


def _marginal(before: Document | None, row: Document) -> str:
    """Dollars per day saved against the row above."""
    if before is None or before["hours"] <= row["hours"]:
        return ""
    per_day = (row["cost_usd"] - before["cost_usd"]) / ((before["hours"] - row["hours"]) / 24)
    return f"{usd(per_day)} per day sooner"


def assumptions_table(rows: Iterable[Document]) -> str:
    """What the answer rests on and who said so."""
    return table([(a["name"], a["value"], f"({a['from']})") for a in rows], align="lll")


def binding_lines(plan: Document) -> Sequence[str]:
    """Tight constraints, or that there are none."""
    return plan["binding"] or ["nothing is tight: the price per FLOP decides"]


def solver_line(s: Document) -> str:
    """The certificate in words."""
    return (
        f"{s['solver']} {s['version']}, {s['status']}, gap {s['gap']:.1e}; {s['columns']:,} columns, {s['columns_in_program']:,} left after "
        f"pruning by bounds, {s['refuted_points']} proposals refuted by the exact ledger, {s['seconds']:.2f} s"
    )


def estimate_text(found: Document) -> str:
    """One fixed configuration."""
    d, cost = found["configuration"], found["cost"]
    return "\n".join(
        section
        for section in (
            f"{machines(d)}, {method_name(d)}: {'fits' if found['fits'] else 'does not fit'}; {duration(d['hours'] * HOUR_S)}, "
            f"{usd(d['cost_usd'])} ({usd(cost['usd_per_million_tokens'])} per million tokens)",
            f"  strategy: {strategy(d)}; micro-batch {d['micro_batch']} x accumulation {d['gradient_accumulation_steps']} x {d['gpus']} GPUs",
            *(f"note: {line}" for line in found["warnings"]),
            f"\nGPU memory per GPU, peak in the {phase_name(found['memory']['gpu']['fullest_phase'])} phase",
            gpu_table(found["memory"]["gpu"]),
            f"\n{store_title('Host RAM', found['memory']['host'])}",
            store_table(found["memory"]["host"]),
            f"\n{store_title('NVMe', found['memory']['nvme'])}",
            store_table(found["memory"]["nvme"]),
            "\nStep time",
            time_table(found["time"]),
            "\nConstraints",
            *(f"  {line}" for line in found["constraints"]),
        )
        if section
    )


def stack_text(plan: Document) -> str:
    """The stack, one transform per row."""
    rows: list[tuple[str, ...]] = [("", "GPU tensors", "change", "host RAM", "step", "change", "DeepSpeed keys")]
    before: Document | None = None
    for row in plan["stack"]:
        keys = ", ".join(f"{k} = {v}" for k, v in row["deepspeed"].items())
        rows.append(
            (
                ("+ " if before else "") + row["strategy"],
                gib(row["allocated_bytes"]),
                _change(before, row, "allocated_bytes"),
                gib(row["host_bytes_per_node"]),
                duration(row["step_s"]),
                _change(before, row, "step_s"),
                keys,
            )
        )
        before = row
    return table(rows, align="lrrrrrl", indent="")


def _change(before: Document | None, row: Document, key: str) -> str:
    if before is None or not before[key]:
        return ""
    change = row[key] / before[key] - 1
    return "" if abs(change) < 0.0005 else f"{change:+.1%}"


def lines_text(plan: Document, wanted: str) -> str:
    """Arithmetic, phases, certainty and source of every memory line and time term whose name or section matches."""
    needle = wanted.lower().lstrip("§")
    found = []
    for device in ("gpu", "host", "nvme"):
        for e in plan["memory"][device]["entries"]:
            if needle in e["item"].lower() or needle == e["section"].lower():
                found.append(
                    f"{e['item']} (§{e['section']}, {device}): {gib(e['bytes'])} = {e['bytes']:,} B per rank\n  arithmetic: {e['why']}\n"
                    f"  alive in: {', '.join(phase_name(p) for p in e['phases'])}\n  known: {e['certainty']}"
                    + (f"; upper bound {gib(e['upper_bytes'])}" if e["upper_bytes"] != e["bytes"] else "")
                    + (f"\n  source: {e['source']}" if e["source"] else "")
                )
    for t in plan["time"]["terms"]:
        if needle in t["name"].lower():
            found.append(
                f"{t['name']} (time): {duration(t['seconds_per_step'])} per step, {duration(t['exposed_s'])} of it exposed\n"
                f"  limited by: {t['limited_by']}\n  source: {t['source'] or 'arithmetic on the work'}"
            )
    return "\n".join(found)


def refused_text(found: Document) -> str:
    """Which constraint rejects a choice, by how much, and the cheapest change."""
    lines = []
    if found["illegal"]:
        lines.append(f"not possible: {found['illegal']}")
    for broken in found["broken"]:
        lines.append(f"rejected by {broken['text']}")
    if not lines:
        d = found["configuration"]
        dearer = found["dearer_usd"] or 0.0
        verdict = (
            f"{usd(dearer)} dearer than the plan"
            if dearer > 0.005
            else "as cheap as the plan, or cheaper: it breaks no constraint"
        )
        lines.append(
            f"possible: {machines(d)}, {strategy(d)}, {duration(d['hours'] * HOUR_S)}, {usd(d['cost_usd'])}; {verdict}"
        )
    if found["cheapest_change"]:
        c = found["cheapest_change"]
        lines.append(
            f"cheapest change: {machines(c)}, {strategy(c)}, micro-batch {c['micro_batch']}: {duration(c['hours'] * HOUR_S)}, {usd(c['cost_usd'])}"
        )
    elif found["broken"] or found["illegal"]:
        lines.append("no change of strategy or micro-batch admits it")
    return "\n".join(lines)
