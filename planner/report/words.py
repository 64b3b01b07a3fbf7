"""How plans are spoken of: machines, strategies, prices, phases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..staleness import UNDATED, flag
from ..units import HOUR_S, duration, usd

Document = Mapping[str, Any]
OLD = "*"
OLD_PRICES = "  * this price is undated, or older than {days:g} days"
METHODS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
# Parts of every plan, or said elsewhere: no decision that a reader waits for.
SILENT = ("bf16", "adamw", "flash-attention", "lora", "qlora")


def method_name(row: Document) -> str:
    """How a method is called in a sentence."""
    return METHODS[row["method"]]


def machines(d: Document) -> str:
    """GPUs, machines, offer."""
    nodes = "1 node" if d["nodes"] == 1 else f"{d['nodes']} nodes"
    return f"{d['gpus']} x {d['gpu']} ({nodes} of {d['offer']})"


def strategy(d: Document) -> str:
    """The parts of the stack that are a decision, by the names that --require knows, with their numbers.

    >>> strategy({"strategies": ["bf16", "checkpointing", "zero-3"], "checkpointed_layers": 7})
    'zero-3, checkpointing of 7 layers'
    """
    names = [name for name in d["strategies"] if name not in SILENT]
    return ", ".join(_with_number(name, d) for name in sorted(names, key=_place))


def _place(name: str) -> tuple[int, str]:
    """ZeRO, offload, checkpointing, the rest."""
    starts = ("zero", "offload", "checkpointing")
    return next((i for i, start in enumerate(starts) if name.startswith(start)), len(starts)), name


def _with_number(name: str, d: Document) -> str:
    ratio = d.get("offload_ratio")
    if name.startswith("checkpointing"):
        return f"{name} of {d['checkpointed_layers']} layers"
    return f"{name} ({ratio:.0%})" if name == "offload-optimizer-cpu" and ratio is not None and ratio < 1 else name


def brief(d: Document) -> str:
    """A strategy in a table's cell.

    >>> offloads = ["offload-optimizer-cpu", "offload-parameters-cpu"]
    >>> brief({"strategies": ["checkpointing", "zero-3", *offloads], "checkpointed_layers": 7})
    'zero-3, ckpt 7, optimizer+parameters on cpu'
    """
    names = sorted((name for name in d["strategies"] if name not in SILENT), key=_place)
    moved = [name.removeprefix("offload-").rpartition("-") for name in names if name.startswith("offload-")]
    devices = dict.fromkeys(where for _, _, where in moved)
    offloads = [f"{'+'.join(what for what, _, to in moved if to == where)} on {where}" for where in devices]
    return ", ".join([_brief(name, d) for name in names if not name.startswith("offload-")] + offloads)


def _brief(name: str, d: Document) -> str:
    if name.startswith("checkpointing"):
        return f"ckpt {d['checkpointed_layers']}{' to host' if name.endswith('offload') else ''}"
    return name


def batch(d: Document) -> str:
    """The batch triangle."""
    replicas = d.get("data_parallel_world_size") or d["gpus"]
    kind = "GPU" if replicas == d["gpus"] else "data-parallel rank"
    ranks = f"{replicas} {kind}{'s' if replicas > 1 else ''}"
    size = d["micro_batch"] * d["gradient_accumulation_steps"] * replicas
    return (
        f"{size:,} sequences per step = micro-batch {d['micro_batch']} x accumulation "
        f"{d['gradient_accumulation_steps']} x {ranks}"
    )


def hours(row: Document) -> str:
    """The run's length."""
    return duration(row["hours"] * HOUR_S)


def price(d: Document) -> str:
    """What a node costs, and since when."""
    per_gpu = d["usd_per_node_hour"] / d["gpus_per_node"]
    where = f", {d['region']}" if d["region"] else ""
    rate = f"{usd(d['usd_per_node_hour'])} per node-hour ({usd(per_gpu)} per GPU-hour)"
    date, said = d["price_date"] or UNDATED, flag(d["price_date"])
    return f"{rate}, {d['tier']}{where}, {date}" + (f", {said}" if said not in ("", UNDATED) else "")


def starred(row: Document) -> str:
    """A star behind an offer whose price is undated or old; OLD_PRICES says what it means."""
    return OLD if flag(row["price_date"]) else ""


def shortened(name: str, length: int = 24) -> str:
    """A long name without its middle.

    >>> shortened("shadeform/massedcompute/A100-sxm4-80GBx8", 20)
    'shadeform..m4-80GBx8'
    """
    head, tail = (length - 2) // 2, (length - 1) // 2
    return name if len(name) <= length else f"{name[:head]}..{name[-tail:]}"


def phase_name(phase: str) -> str:
    """How a phase is called."""
    return phase.replace("_", " ")
