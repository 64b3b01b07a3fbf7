"""The plan: the decision, the arithmetic that led to it, why the others lost; and its JSON form (versioned)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .candidate import Candidate, Constraint, constraints, cost_band, step_time
from .compute import model_flops_per_token
from .emit.deepspeed import ds_config
from .evaluate import evaluate
from .ledger import Device, Entry, Ledger
from .memory import GpuMemory, StoreMemory
from .price_rows import bill_document, network_text, origin, price_assumptions, price_facts, price_warnings
from .program import Certificate
from .request import Request
from .run_lines import run_assumptions, run_document
from .time import StepTime, rests_on, step_seconds
from .transform import Stack
from .units import GIB
from .workload import Method

if TYPE_CHECKING:
    from .day_sooner import DaySooner

SCHEMA_VERSION = 1
ADAPTER_FLOP_SHARE = 4 / 6  # forward 2, input gradients 2, of 6 FLOPs per parameter and token
TIGHT_SHARE = 0.10  # a constraint with less room than this is reported as binding
GIVEN_UP = {
    Method.FULL: "nothing: every parameter is trained",
    Method.LORA: "full fine-tuning: only low-rank adapters are trained, the model's own weights stay as they are",
    Method.QLORA: (
        "full fine-tuning, and the base model's precision: only low-rank adapters are trained, "
        "on weights rounded to 4 bits"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way to run the job, or why there is none."""

    label: str
    candidate: Candidate | None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A decision with its evidence."""

    request: Request
    candidate: Candidate
    certificate: Certificate
    alternatives: tuple[Alternative, ...]
    frontier: tuple[Candidate, ...]
    rows: tuple[StackRow, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    day_sooner: DaySooner | None = None

    @property
    def ds_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        return ds_config(self.candidate.ledger, self.candidate.setting)

    @property
    def binding(self) -> tuple[Constraint, ...]:
        """Constraints with less than TIGHT_SHARE of room."""
        return tuple(
            c for c in self.constraints if c.limit and math.isfinite(c.limit) and c.needs > (1 - TIGHT_SHARE) * c.limit
        )

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """All constraints of the program at the decision."""
        r = self.request
        return constraints(
            self.candidate, budget_usd=r.budget_usd, deadline_s=r.deadline_s, max_gpus=r.gpu_count or r.max_gpus
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        c = self.candidate
        return {
            "schema_version": SCHEMA_VERSION,
            "status": "planned",
            "decision": decision(c),
            "given_up": GIVEN_UP[c.method],
            "model": model_row(c),
            "adapters": adapters_row(c),
            "memory": memory_document(c),
            "time": time_document(c),
            "cost": cost_document(c),
            "stack": [row.to_dict() for row in self.rows],
            "alternatives": [
                {"label": a.label, "note": a.note, **(summary(a.candidate) if a.candidate else {})}
                for a in self.alternatives
            ],
            "frontier": [summary(f) for f in self.frontier],
            "day_sooner": self.day_sooner.to_dict() if self.day_sooner else None,
            "assumptions": assumptions(self.request, c),
            "binding": [x.text() for x in self.binding],
            "constraints": [constraint_row(x) for x in self.constraints],
            "warnings": list(self.warnings),
            "dropped": self.dropped,
            "solver": certificate_document(self.certificate),
            "ds_config": self.ds_config,
            "request": self.request.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class StackRow:
    """One strategy of the stack: what the ledger and the step were after it."""

    strategy: str
    allocated_bytes: int
    host_bytes: int
    step_s: float
    deepspeed: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "strategy": self.strategy,
            "allocated_bytes": self.allocated_bytes,
            "host_bytes_per_node": self.host_bytes,
            "step_s": self.step_s,
            "deepspeed": self.deepspeed,
        }


def stack_rows(candidate: Candidate) -> tuple[StackRow, ...]:
    """The baseline and the ledger after each strategy, each with its step on the candidate's machine."""
    strategies, setting = candidate.stack.strategies, candidate.setting
    rows: list[StackRow] = []
    before: dict[str, Any] = {}
    for count in range(len(strategies) + 1):
        ledger = evaluate(Stack(strategies[:count]), setting)
        rows.append(
            StackRow(
                strategy=strategies[count - 1].name if count else "baseline: bf16, AdamW, every rank holds everything",
                allocated_bytes=ledger.peak(Device.GPU),
                host_bytes=ledger.peak(Device.HOST) * setting.ranks_per_node,
                step_s=step_time(ledger, setting, candidate.offer.node).step_s,
                deepspeed=_changed(before, ledger.deepspeed),
            )
        )
        before = ledger.deepspeed
    return tuple(rows)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Keys that are new or different, sections taken apart."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict):
            inner = _changed(old if isinstance(old, dict) else {}, value)
            found |= {f"{key}.{name}": x for name, x in inner.items()}
        elif value != old:
            found[key] = value
    return found


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


def assumptions(request: Request, c: Candidate) -> list[dict[str, str]]:
    """What the answer rests on: the user's choices, defaults, the price and the machine."""
    computation = c.ledger.computation
    rows = request.assumptions(c.setting.model, computation.precision, c.ledger.optimizer.name)
    node = c.offer.node
    ram = "unknown" if node.host_memory_bytes is None else f"{node.host_memory_bytes / GIB:,.0f} GiB"
    price_rows = [
        *price_assumptions(request, c.offer),
        (
            "machine",
            f"{node.gpus} x {node.gpu.full_name}, host RAM {ram}",
            origin(request),
        ),
        ("network between nodes", network_text(node), origin(request)),
        ("attention", computation.attention.value, "strategy"),
        (
            "loss",
            f"chunks of {computation.loss_chunk:,} tokens"
            if computation.loss_chunk
            else "all logits at once, as transformers does",
            "default",
        ),
    ]
    kernels = [name for name in SCRIPT if name in c.stack.names]
    if kernels:
        price_rows.append(("kernels", f"{' and '.join(kernels)}: train.py sets them up; memory without them", "you"))
    if c.zero_stage == 3:
        built = "whole on every GPU, then cut (no zero.Init)"
        named = "no-zero-init" in c.stack.names
        value = "in partitions (zero.Init)" if c.ledger.zero_init else built
        price_rows.append(("model built", value, "you" if named else "default"))
    price_rows += run_assumptions(c.setting.workload.run, c.offer.tier)
    return rows + [{"name": name, "value": value, "from": who} for name, value, who in price_rows]


def warnings_for(c: Candidate) -> tuple[str, ...]:
    """What a reviewer must know before trusting the plan."""
    found = price_warnings(c.offer)
    if c.host.capacity_bytes is None:
        found.append(
            f"host RAM of {c.offer.name} is unknown; "
            f"the plan needs {c.host.upper_bound_bytes / GIB:,.0f} GiB per node, not checked"
        )
    if c.offer.notes:
        found.append(f"offer {c.offer.name}: {c.offer.notes}")
    if any(e.certainty.value == "assumed" and e.device is Device.GPU for e in c.ledger.entries):
        found.append(f"activations of {c.setting.model.family} are an upper bound, not checked against a trace")
    if "offload_optimizer" in c.stack.facts:
        found.append("the CPU optimizer is compiled on first use; the node needs a host compiler (g++ and ninja)")
    if c.ledger.optimizer.deepspeed is None:
        found.append(
            f"optimizer {c.ledger.optimizer.name}: not a ds_config type; train.py must pass it to deepspeed.initialize"
        )
    found += [text for name, text in SCRIPT.items() if name in c.stack.names]
    return tuple(found)


# What only the training script can do, by strategy.
SCRIPT = {
    "liger": "liger: train.py must patch the model with Liger Kernel before it is built; memory is planned without",
    "torch-compile": "torch-compile: train.py must compile the decoder layers; memory is planned without",
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
