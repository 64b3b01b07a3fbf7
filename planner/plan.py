"""The plan: the decision, the arithmetic that led to it, why the others lost; and its JSON form (versioned)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from .candidate import Candidate, Constraint, constraints
from .day_sooner import DaySooner
from .decide import Alternative
from .documents import (
    SCHEMA_VERSION,
    adapters_row,
    certificate_document,
    constraint_row,
    cost_document,
    decision,
    memory_document,
    model_row,
    summary,
    time_document,
)
from .emit.deepspeed import ds_config
from .emit.training import training_document
from .ledger import Device
from .parallel import WHOLE
from .price_rows import network_text, origin, price_assumptions, price_warnings
from .program import Certificate
from .request import Request
from .run_lines import run_assumptions
from .stack_rows import StackRow
from .units import GIB
from .workload import Method

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
            **core_document(c),
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
            "request": self.request.to_dict(),
        }


def core_document(c: Candidate) -> dict[str, Any]:
    """What a job needs of a plan and what it promises: the decision, what is trained, memory, time and cost."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "planned",
        "decision": decision(c),
        "given_up": GIVEN_UP[c.method],
        "model": model_row(c),
        "adapters": adapters_row(c),
        "training": training_document(c),
        "ds_config": ds_config(c.ledger, c.setting),
        "memory": memory_document(c),
        "time": time_document(c),
        "cost": cost_document(c),
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
    if request.profile is not None:
        from .calibrate.used import profile_assumptions  # here: few requests have one

        price_rows += profile_assumptions(request, node.gpu)
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
    if c.setting.split is not WHOLE:
        found.append("the model is cut: no engine that cuts one was compared, and its states are assumed")
    elif any(e.certainty.value == "assumed" and e.device is Device.GPU for e in c.ledger.entries):
        found.append(f"activations of {c.setting.model.family} are an upper bound, not checked against a trace")
    if "offload_optimizer" in c.stack.facts:
        found.append("the CPU optimizer is compiled on first use; the node needs a host compiler (g++ and ninja)")
    if c.ledger.optimizer.deepspeed is None:
        found.append(
            f"optimizer {c.ledger.optimizer.name}: no type of ds_config; the plan's train.py makes it, a script of your"
            " own must pass it to deepspeed.initialize"
        )
    found += [text for name, text in SCRIPT.items() if name in c.stack.names]
    return tuple(found)


# What only the training script can do, by strategy.
SCRIPT = {
    "liger": (
        "liger: the plan's train.py patches the model with Liger Kernel, a script of your own must do so before it "
        "builds the model; memory is planned without"
    ),
    "torch-compile": (
        "torch-compile: the plan's train.py compiles the decoder layers, a script of your own must do so; memory is "
        "planned without"
    ),
}
