"""A candidate as JSON values: the decision, its memory, time and cost; what plan.json and reports are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .candidate import Candidate, Constraint, cost_band
from .compute import model_flops_per_token
from .ledger import Device, Entry, Ledger
from .memory import GpuMemory, StoreMemory
from .price_rows import bill_document, price_facts
from .program import Certificate
from .recipe import ALPHA_PER_RANK
from .request import Request
from .run_lines import run_document
from .time import StepTime, rests_on, step_seconds

SCHEMA_VERSION = 1
ADAPTER_FLOP_SHARE = 4 / 6  # forward 2, input gradients 2, of 6 FLOPs per parameter and token


def decision(c: Candidate) -> dict[str, Any]:
    """The stable names of the decision, and a few more."""
    return {
        "gpus": c.gpus,
        "nodes": c.setting.nodes,
        "gpu": c.offer.node.gpu.name,
        "offer": c.offer.name,
        "method": c.method.value,
        "zero_stage": c.zero_stage,
        "strategies": list(c.stack.names),
        "micro_batch": c.setting.micro_batch,
        "gradient_accumulation_steps": c.setting.gradient_accumulation_steps,
        "data_parallel_world_size": c.setting.data_parallel,
        "checkpointed_layers": c.layers,
        "offload_ratio": c.ledger.deepspeed.get("zero_optimization", {}).get("offload_optimizer", {}).get("ratio"),
        "hours": c.cost.hours,
        "cost_usd": c.cost.usd,
        "gpus_per_node": c.setting.ranks_per_node,
        **price_facts(c.offer),
    }


def summary(c: Candidate) -> dict[str, Any]:
    """One line of a table of plans."""
    keys = (
        "gpus",
        "nodes",
        "gpu",
        "offer",
        "method",
        "zero_stage",
        "strategies",
        "micro_batch",
        "gradient_accumulation_steps",
        "checkpointed_layers",
        "hours",
        "cost_usd",
        "tier",
        "price_date",
        "price_flag",
    )
    row = decision(c)
    return {key: row[key] for key in keys} | {"upper_bound_bytes": c.gpu.upper_bound_bytes}


def model_row(c: Candidate) -> dict[str, Any]:
    """Which model it is and how much of it is trained."""
    model = c.setting.model
    return {
        "name": model.name,
        "family": model.family,
        "parameters": model.parameter_count,
        "trainable_parameters": c.ledger.trainable.total,
        "source": model.source,
        "config": model.config,
    }


def adapters_row(c: Candidate) -> dict[str, Any] | None:
    """What peft.LoraConfig must be given; None where every parameter is trained."""
    adapters = c.ledger.computation.adapters
    if adapters is None:
        return None
    return {
        "rank": adapters.rank,
        "alpha": ALPHA_PER_RANK * adapters.rank,
        "target_modules": list(adapters.targets) or "all-linear",
        "dropout": adapters.dropout,
    }


def memory_document(c: Candidate) -> dict[str, Any]:
    """GPU, host and NVMe with their entries."""
    return {
        "gpu": _gpu_document(c.gpu, c.ledger),
        "host": _store_document(c.host, c.ledger, Device.HOST, c.setting.ranks_per_node),
        "nvme": _store_document(c.nvme, c.ledger, Device.NVME, c.setting.ranks_per_node),
    }


def _gpu_document(memory: GpuMemory, ledger: Ledger) -> dict[str, Any]:
    return {
        "capacity_bytes": memory.capacity_bytes,
        "allocated_bytes": memory.allocated_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "device_bytes": memory.device_bytes,
        "upper_bound_bytes": memory.upper_bound_bytes,
        "ranges": {
            name: {"low_bytes": band.low, "upper_bytes": band.upper}
            for name, band in (
                ("allocated", memory.allocated),
                ("reserved", memory.reserved),
                ("device", memory.device),
            )
        },
        "fits": memory.fits,
        "fullest_phase": memory.fullest.value,
        "phases": {phase.value: size for phase, size in ledger.by_phase(Device.GPU).items()},
        "entries": entries(ledger, Device.GPU),
    }


def _store_document(memory: StoreMemory, ledger: Ledger, device: Device, ranks: int) -> dict[str, Any]:
    return {
        "capacity_bytes": memory.capacity_bytes,
        "needed_bytes": memory.needed_bytes,
        "upper_bound_bytes": memory.upper_bound_bytes,
        "fits": memory.fits,
        "checked": memory.checked,
        "ranks_per_node": ranks,
        "phases": {phase.value: size * ranks for phase, size in ledger.by_phase(device).items()},
        "entries": entries(ledger, device),
    }


def entries(ledger: Ledger, device: Device) -> list[dict[str, Any]]:
    """Lines of one device, largest first; bytes are per rank."""
    lines = sorted((e for e in ledger.entries if e.device is device), key=lambda e: -e.bytes)
    return [entry_row(e) for e in lines]


def entry_row(e: Entry) -> dict[str, Any]:
    """One line."""
    return {
        "item": e.item.label,
        "section": e.item.section,
        "bytes": e.bytes,
        "upper_bytes": e.upper_bytes,
        "phases": [p.value for p in e.phases],
        "why": e.why,
        "certainty": e.certainty.value,
        "source": e.source,
    }


def time_document(c: Candidate) -> dict[str, Any]:
    """The step's time, split."""
    time: StepTime = c.time
    tokens = c.setting.workload.global_batch * c.setting.workload.seq_len
    band = step_seconds(time)
    return {
        "step_s": time.step_s,
        "step_s_low": band.low,
        "step_s_upper": band.upper,
        "rests_on": rests_on(time),
        "steps": c.setting.workload.steps,
        "tokens_per_s_per_gpu": tokens / time.step_s / c.gpus,
        "mfu": mfu(c),
        "terms": [
            {
                "name": t.name,
                "seconds_per_step": t.seconds_per_step,
                "exposed_s": t.exposed_s,
                "limited_by": t.limited_by,
                "amount": t.amount,
                "figure": t.ground.figure,
                "kind": t.ground.kind,
                "source": t.ground.source,
            }
            for t in time.terms
        ],
    }


def mfu(c: Candidate) -> float | None:
    """Model FLOPs utilisation: what the trained tokens need, over the datasheet peak in the training precision.

    Adapters need 4 of the 6 FLOPs per parameter and token: forward and input gradients, no weight gradients.
    """
    gpu, workload = c.offer.node.gpu, c.setting.workload
    precision = c.ledger.computation.precision.value
    peak = {"bf16": gpu.bf16_flop_per_s, "fp16": gpu.fp16_flop_per_s, "fp32": gpu.fp32_flop_per_s}[precision]
    if not peak:
        return None
    needed = ADAPTER_FLOP_SHARE if c.ledger.computation.adapters else 1.0
    per_s = workload.global_batch * workload.seq_len / c.time.step_s / c.gpus
    return needed * model_flops_per_token(workload.model, workload.seq_len) * per_s / peak


def cost_document(c: Candidate) -> dict[str, Any]:
    """Dollars and hours."""
    low, upper = cost_band(c)
    return {
        "usd": c.cost.usd,
        "usd_low": low.usd,
        "usd_upper": upper.usd,
        "hours": c.cost.hours,
        "hours_low": low.hours,
        "hours_upper": upper.hours,
        "gpu_hours": c.cost.gpu_hours,
        "node_hours": c.cost.node_hours,
        "usd_per_million_tokens": c.cost.usd_per_million_tokens,
        **price_facts(c.offer),
        **bill_document(c.offer, c.setting.nodes, c.cost.hours),
        "kwh": c.cost.kwh,
        "kgco2": c.cost.kgco2,
        "run": run_document(c.cost.run, c.setting.workload.run, c.offer.tier),
    }


def constraint_row(x: Constraint) -> dict[str, Any]:
    """One constraint; infinite limits are none."""
    limit = x.limit if x.limit is not None and math.isfinite(x.limit) else None
    return {"name": x.name, "needs": x.needs, "limit": limit, "unit": x.unit, "holds": x.holds}


def certificate_document(c: Certificate) -> dict[str, Any]:
    """Why the answer may be believed."""
    return {
        "solver": c.solver,
        "version": c.version,
        "status": c.status.value,
        "objective": c.objective.value,
        "value": c.value,
        "bound": c.bound,
        "gap": c.gap,
        "columns": c.columns,
        "columns_in_program": c.in_program,
        "refuted_points": c.cuts,
        "seconds": round(c.seconds, 4),
    }


def answered(request: Request, c: Candidate, **answers: Any) -> dict[str, Any]:
    """The JSON document of a question about a decision."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "answered",
        "model": c.setting.model.name,
        "decision": decision(c),
        **answers,
        "request": request.to_dict(),
    }


def no_plan_document(
    request: Request,
    message: str,
    nearest: Candidate | None,
    ways_out: Sequence[dict[str, Any]],
    dropped: dict[str, int],
) -> dict[str, Any]:
    """The JSON document where nothing fits."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "no_plan",
        "message": message,
        "closest": summary(nearest) if nearest else None,
        "ways_out": list(ways_out),
        "dropped": dropped,
        "request": request.to_dict(),
    }
