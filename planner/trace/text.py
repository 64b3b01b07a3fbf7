"""A trace as people and programs read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report.table import table
from ..units import GIB, count
from . import Subject, Trace
from .compare import Row

MOST_GROUPS = 16  # of what is alive at the peak: below them stand sizes that decide nothing

SHOWN = 0.00005  # a difference that rounds to 0.00 % has no sign


def trace_document(trace: Trace, rows: Sequence[Row], subject: Subject, note: str = "") -> dict[str, Any]:
    """The JSON document; bytes of one rank."""
    computation = subject.computation
    return {
        "schema_version": 1,
        "status": "traced",
        "model": {"name": subject.model.name, "source": subject.model.source, "note": note},
        "subject": {
            "seq_len": subject.seq_len,
            "micro_batch": subject.micro_batch,
            "micro_steps": subject.micro_steps,
            "method": method_of(subject),
            "precision": computation.precision.value,
            "attention": computation.attention.value,
            "checkpointed_layers": computation.checkpointed_layers,
            "loss_chunk_tokens": computation.loss_chunk,
        },
        "peak": {"phase": trace.peak_phase, "operation": trace.peak_operation, "bytes": max(trace.peak_bytes.values())},
        "peak_bytes": dict(trace.peak_bytes),
        "activation_peak_bytes": dict(trace.activation_peak_bytes),
        "workspace_peak_bytes": trace.workspace_peak_bytes,
        "reserved_peak_bytes": dict(trace.reserved_peak_bytes),
        "parameter_bytes": trace.parameter_bytes,
        "buffer_bytes": trace.buffer_bytes,
        "gradient_bytes": trace.gradient_bytes,
        "optimizer_bytes": trace.optimizer_bytes,
        "saved_after_forward_bytes": trace.saved_after_forward_bytes,
        "compared": [
            {"name": r.name, "traced_bytes": r.traced_bytes, "ledger_bytes": r.ledger_bytes, "difference": r.difference}
            for r in rows
        ],
        "alive": [
            {
                "category": a.category.value, "module": a.module, "operation": a.operation, "shape": list(a.shape),
                "dtype": a.dtype, "count": a.count, "bytes": a.bytes,
            }
            for a in trace.alive
        ],
        "operations": trace.operations,
        "seconds": trace.seconds,
    }  # fmt: skip


def method_of(subject: Subject) -> str:
    """full, lora or qlora."""
    if subject.computation.adapters is None:
        return "full"
    return "qlora" if subject.computation.quantized else "lora"


def trace_text(document: dict[str, Any]) -> str:
    """What was traced, the comparison, and what is alive at the peak."""
    return "\n\n".join((_head(document), _comparison(document), _alive(document)))


def _head(document: dict[str, Any]) -> str:
    s, peak = document["subject"], document["peak"]
    loss = f"loss in chunks of {s['loss_chunk_tokens']:,} tokens" if s["loss_chunk_tokens"] else "all logits at once"
    choices = (
        s["method"], s["precision"], f"{s['attention']} attention",
        f"{s['checkpointed_layers']} layers checkpointed" if s["checkpointed_layers"] else "no checkpointing", loss,
        f"{s['micro_steps']} micro-steps" if s["micro_steps"] > 1 else "one micro-step",
    )  # fmt: skip
    inside = document["workspace_peak_bytes"] - peak["bytes"]
    lines = [
        f"{document['model']['name']}, {s['micro_batch']} x {s['seq_len']:,} tokens: "
        f"peak {_gib(peak['bytes'])} GiB in {_phase(peak['phase'])}, at {peak['operation']}",
        f"  traced    {', '.join(choices)}",
        f"  on        one GPU without DeepSpeed: states in {s['precision']}, fused AdamW",
        f"  seen      {document['operations']:,} operators",
    ]
    if document["model"]["note"]:
        lines.insert(1, f"  model     {document['model']['note']}")
    held = document["reserved_peak_bytes"]
    lines.append(
        f"  reserved  {_gib(held['expandable'])} GiB by PyTorch's allocator with expandable segments, "
        f"{_gib(held['native'])} without (replayed)"
    )
    if inside > 0:
        lines.append(f"  besides   {_gib(inside)} GiB inside attention kernels at their fullest")
    return "\n".join(lines)


def _phase(name: str) -> str:
    return {"forward": "the forward pass", "backward": "the backward pass", "step": "the optimizer step"}[name]


def _comparison(document: dict[str, Any]) -> str:
    rows = [
        (row["name"], _gib(row["traced_bytes"]), _gib(row["ledger_bytes"]), _difference(row["difference"]))
        for row in document["compared"]
    ]
    return table(rows, header=("GiB", "traced", "ledger", "difference"), align="lrrr")


def _difference(value: float | None) -> str:
    if value is None:
        return ""
    return "0.00%" if abs(value) < SHOWN else f"{value:+.2%}"


def _alive(document: dict[str, Any]) -> str:
    groups = document["alive"]
    rows = [
        (
            a["category"], a["module"] or "-", a["operation"], "x".join(map(str, a["shape"])) or "scalar", a["dtype"],
            count(a["count"]), _gib(a["bytes"]),
        )
        for a in groups[:MOST_GROUPS]
    ]  # fmt: skip
    rest = groups[MOST_GROUPS:]
    if rest:
        left = f"{len(rest)} further kinds"
        rows.append((left, "", "", "", "", count(sum(a["count"] for a in rest)), _gib(sum(a["bytes"] for a in rest))))
    header = ("alive at the peak", "made in", "by", "shape", "type", "count", "GiB")
    total = ("total", "", "", "", "", "", _gib(document["peak"]["bytes"]))
    return table(rows, header=header, footer=total, align="lllllrr")


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f}"
