"""Why a choice is not the plan: what rejects it, by how much, and what would admit it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..planner import catalog
from ..planner.candidate import Candidate, Constraint, constraints
from ..planner.documents import decision, summary
from ..planner.errors import InputError
from ..planner.model import Model
from ..planner.request import Request
from .configuring import assessed, checkpointed, offload_groups, where_kept
from .estimating import Estimate
from .rebuilding import decided, facts_of
from .searching import search, silent


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why a choice is not the plan."""

    estimate: Estimate | None
    broken: tuple[Constraint, ...]
    illegal: str
    remedy: Candidate | None
    dearer_usd: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema_version": 1,
            "status": "refused" if self.broken or self.illegal else "admitted",
            "illegal": self.illegal,
            "broken": [{"constraint": c.name, "short": c.short, "unit": c.unit, "text": c.text()} for c in self.broken],
            "configuration": decision(self.estimate.candidate) if self.estimate else None,
            "dearer_usd": self.dearer_usd,
            "cheapest_change": summary(self.remedy) if self.remedy else None,
        }


def why_not(
    model: Model,
    wanted: Request,
    chosen: dict[str, Any],
    *,
    num_gpus: int | None = None,
    zero: int | None = None,
    micro_batch: int | None = None,
    method: str | None = None,
    gpu: str | None = None,
    offload_optimizer: str | None = None,
    offload_parameters: str | None = None,
    checkpointing: str | None = None,
) -> Refused:
    """Which constraint rejects a choice, by how much, and the cheapest change that would admit it.

    Args:
        model: the plan's model.
        wanted: the plan's request.
        chosen: the plan's decision, for everything the choice leaves open.
        num_gpus: GPUs instead; the rest likewise.

    Raises:
        InputError: the choice cannot be expressed at all.
    """
    gpus = num_gpus or int(chosen["gpus"])
    other = {"gpu": catalog.find_gpu(gpu).name if gpu else chosen["gpu"], "method": method or chosen["method"]}
    asked = decided(wanted, {**chosen, **other, "gpus": gpus})
    facts, layers = _facts_like(chosen, zero, offload_optimizer, offload_parameters, checkpointing, model)
    size = micro_batch or _fitting_micro_batch(asked, gpus, int(chosen["micro_batch"]))
    groups = offload_groups(chosen.get("offload_ratio") or 1.0)
    try:
        candidate = assessed(
            model, asked, facts, layers=layers, groups=groups, micro_batch=size, offer=str(chosen.get("offer"))
        )
    except InputError as error:
        return Refused(
            estimate=None, broken=(), illegal=str(error), remedy=_remedy(model, asked, zero), dearer_usd=None
        )
    limits = constraints(
        candidate, budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, max_gpus=wanted.max_gpus
    )
    broken = tuple(c for c in limits if not c.holds)
    return Refused(
        estimate=Estimate(request=asked, candidate=candidate),
        broken=broken,
        illegal="",
        remedy=_remedy(model, asked, zero) if broken else None,
        dearer_usd=candidate.cost.usd - float(chosen["cost_usd"]),
    )


def _fitting_micro_batch(asked: Request, gpus: int, preferred: int) -> int:
    share = asked.sequences // gpus if asked.sequences % gpus == 0 else 1
    return preferred if share % preferred == 0 else 1


def _facts_like(
    chosen: dict[str, Any],
    zero: int | None,
    optimizer: str | None,
    parameters: str | None,
    checkpointing: str | None,
    model: Model,
) -> tuple[dict[str, Any], int]:
    """The decision's stack with the asked changes, and its checkpointed layers.

    A changed stage drops offload that the stage cannot have.
    """
    layers = int(chosen["checkpointed_layers"])
    before = facts_of(chosen, layers)
    stage = before["zero_stage"] if zero is None else zero
    on_cpu = optimizer or before["offload_optimizer"]
    on_host = before["checkpointing"] == "host"
    if checkpointing is not None:
        layers, on_host = checkpointed(checkpointing, model)
    if stage == 0 and not optimizer:
        on_cpu = None
    held = parameters or (before["offload_parameters"] if stage == 3 else None)
    partial = stage == 3 and on_cpu == "cpu" and before["partial_share"]
    facts = {
        "zero_stage": stage,
        "offload_optimizer": None if on_cpu == "none" else on_cpu,
        "offload_parameters": None if held == "none" else held,
        "partial_share": partial,
        "checkpointing": where_kept(layers, on_host),
    }
    return facts, layers


def _remedy(model: Model, asked: Request, zero: int | None) -> Candidate | None:
    """The cheapest plan that keeps what was asked: first GPUs and stage, then GPUs alone."""
    for require in ((f"zero-{zero}",) if zero is not None else (), ()):
        try:
            searched = search(model, replace(asked, require=tuple(dict.fromkeys((*asked.require, *require)))), silent)
            found = searched.cheapest()
        except InputError:
            continue
        if found:
            return found[0]
    return None
