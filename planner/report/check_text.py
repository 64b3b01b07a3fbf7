"""The answer to `trainplan check` as people read it, from its JSON document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from textwrap import wrap

from ..dsconfig.findings import shown
from ..units import duration, gib, usd
from .table import table
from .text import FACT_WIDTH, decision_line
from .words import Document, batch, machines, price

WIDTH = 120
SEVERITIES = {"error": "will not run", "harmful": "harmful", "wasteful": "wasteful or without effect", "note": "notes"}
SMALLEST_BYTES, SMALLEST_S = 2**20 * 5, 1e-3  # below, a difference is not printed


def check_text(found: Document) -> str:
    """The verdict first, then findings, what "auto" became, what keys cost, what is not counted, a better one."""
    parts = (
        _headline(found),
        _findings(found["findings"]),
        _resolved(found["resolved"]),
        _key_costs(found["key_costs"]),
        _not_modelled(found["not_modelled"]),
        _better(found),
    )
    return "\n\n".join(part for part in parts if part)


def _headline(found: Document) -> str:
    d = found["configuration"]
    rows = [
        ("config", f"{found['file']}, as DeepSpeed {found['deepspeed']} reads it"),
        ("model", found["model"].get("note") or found["model"]["source"][:90]),
        ("machine", machines(d)),
        ("price", price(d)),
        ("batch", batch(d)),
        ("precision", found["precision"]),
        ("GPU", _gpu(found["memory"]["gpu"])),
        ("host RAM", _store(found["memory"]["host"])),
        ("NVMe", _store(found["memory"]["nvme"])),
        ("step", f"{duration(found['time']['step_s'])}, {found['time']['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU"),
        *(("unknown", each) for each in found["unknown"]),
        *(("note", each) for each in found["warnings"]),
    ]
    cells = [
        (name if index == 0 else "", line)
        for name, text in rows
        for index, line in enumerate(wrap(text, FACT_WIDTH))
        if text
    ]
    facts = table(cells, align="ll", indent="  ")
    return f"{_verdict(found)}: {decision_line(found['model']['name'], d)}\n{facts}"


def _verdict(found: Document) -> str:
    """What it is in a few words; unknown is no "fits"."""
    counts = Counter(each["severity"] for each in found["findings"])
    harm = f", but harmful ({counts['harmful']})" if counts["harmful"] and found["verdict"] == "fits" else ""
    return f"{found['verdict']}{harm}"


def _gpu(memory: Document) -> str:
    most, capacity = memory["upper_bound_bytes"], memory["capacity_bytes"]
    left = capacity - most
    end = f"{gib(left)} to spare" if left >= 0 else f"{gib(-left)} short"
    tensors = f"{gib(memory['allocated_bytes'])} of tensors, fullest at {memory['fullest_phase'].replace('_', ' ')}"
    return f"{tensors}; at most {gib(most)} of {gib(capacity)}: {end}"


def _store(memory: Document) -> str:
    """Nothing where nothing is kept there."""
    if not memory["needed_bytes"]:
        return ""
    capacity = memory["capacity_bytes"]
    has = "of unknown" if capacity is None else f"of {gib(capacity)} usable"
    return f"{gib(memory['needed_bytes'])} of one node; at most {gib(memory['upper_bound_bytes'])} {has}"


def _findings(findings: Sequence[Document]) -> str:
    """One paragraph each, the worst first."""
    if not findings:
        return "Findings: none"
    counts = Counter(each["severity"] for each in findings)
    head = ", ".join(f"{counts[name]} {words}" for name, words in SEVERITIES.items() if counts[name])
    head = head.removesuffix("s") if counts["note"] == 1 else head
    return f"Findings: {head}\n" + "\n".join(line for each in findings for line in _finding(each))


def _finding(each: Document) -> Iterator[str]:
    where = f"{each['key']} {each['given']}".strip() or "the file"
    costs = f"; costs {text}" if each["costs"] and (text := cost_words(each["costs"])) else ""
    text = f"{where}: {each['why']}{costs}; {each['instead']} ({each['source']})"
    lines = wrap(text, WIDTH - 12, break_on_hyphens=False)
    yield f"  {each['severity']:<9} {lines[0]}"
    yield from (f"            {line}" for line in lines[1:])


def cost_words(cost: Document, more: str = "", less: str = "spares ") -> str:
    """A cost in words: what is taken, and what is saved.

    Args:
        cost: of a finding, or what a better configuration saves.
        more: before what is taken.
        less: before what is spared.

    >>> cost_words({"gpu_bytes": 2**30, "gpu_bytes_in_its_phase": 2**30, "host_bytes_per_node": -(2**31),
    ...     "nvme_bytes_per_node": 0, "step_s": 0.0, "usd": 0.0})
    '1.00 GiB of a GPU, and spares 2.00 GiB of a host'
    """
    peak, phase = cost["gpu_bytes"], cost["gpu_bytes_in_its_phase"]
    gpu = (peak, "of a GPU") if abs(peak) >= SMALLEST_BYTES else (phase, "of a GPU, though not at the peak")
    sizes = (gpu, (cost["host_bytes_per_node"], "of a host"), (cost["nvme_bytes_per_node"], "of NVMe"))
    terms = [(size, f"{gib(abs(size))} {what}") for size, what in sizes if abs(size) >= SMALLEST_BYTES]
    if abs(cost["step_s"]) >= SMALLEST_S:
        terms.append((cost["step_s"], f"{duration(abs(cost['step_s']))} a step ({usd(abs(cost['usd']))})"))
    takes, spares = ([text for size, text in terms if (size > 0) is sign] for sign in (True, False))
    parts = [f"{word}{', '.join(texts)}" for word, texts in ((more, takes), (less, spares)) if texts]
    return ", and ".join(parts)


def _resolved(rows: Sequence[Document]) -> str:
    if not rows:
        return ""
    cells = [(row["key"], shown(row["value"]), row["as"]) for row in rows]
    return f'What "auto" became\n{table(cells, align="lll", indent="  ")}'


def _key_costs(rows: Sequence[Document]) -> str:
    """Each key that makes a difference, against what a plan would write or against its absence."""
    if not rows:
        return ""
    cells = [
        (
            row["key"].removeprefix("zero_optimization."),
            shown(row["value"]) + {"file": "", "auto": " (auto)", "default": " (default)"}.get(row["from"], ""),
            "without" if row["against"] in ("<remove>", "none") else shown(row["against"]),
            _gib(row["costs"]["gpu_bytes"]),
            _gib(row["costs"]["gpu_bytes_in_its_phase"]),
            _gib(row["costs"]["host_bytes_per_node"]),
            _seconds(row["costs"]["step_s"]),
        )
        for row in rows
    ]
    header = ("key", "value", "against", "GPU peak", "GPU phase", "host", "step")
    body = table(cells, header=header, align="lllrrrr", indent="  ")
    return f"What keys cost: GiB of one GPU at the peak and in the key's own phase, of one node's host; step\n{body}"


def _gib(size: int) -> str:
    return f"{size / 2**30:+,.2f}" if abs(size) >= SMALLEST_BYTES else "0"


def _seconds(seconds: float) -> str:
    sign = "+" if seconds > 0 else "-"
    return f"{sign}{duration(abs(seconds))}" if abs(seconds) >= SMALLEST_S else "0"


def _not_modelled(rows: Sequence[Document]) -> str:
    if not rows:
        return ""
    cells = [
        (row["key"], shown(row["value"]), row["effect"], "may need more" if row["may_add"] else "needs no more")
        for row in rows
    ]
    return f"Not modelled, and not in the figures above\n{table(cells, align='llll', indent='  ')}"


def _better(found: Document) -> str:
    better = found["better"]
    if better is None:
        return _nothing_better(found)
    saves = cost_words(better["saves"], "saves ", "takes another ")
    opening = "A better configuration on the same GPUs" if found["verdict"] == "fits" else "One that fits and runs"
    head = "\n".join(wrap(f"{opening}: {saves or 'as quick and as large'}", WIDTH))
    return f"{head}\n\n{better['diff']}".rstrip("\n")


def _nothing_better(found: Document) -> str:
    if any(row["may_add"] for row in found["not_modelled"]):
        return "No better configuration is claimed: what is not modelled may need more"
    if found["verdict"] == "does not fit":
        return (
            "No stage, offload or micro-batch fits on these GPUs; try --checkpointing full, --method lora, or more\n"
            "GPUs, which trainplan plan finds"
        )
    return "Nothing better was found on these GPUs: stages, offloads, sizes and micro-batches were tried"
