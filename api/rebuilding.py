"""From a plan file back to its candidate: the decision assessed once more, with everything that is known today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..planner.candidate import Candidate
from ..planner.model import Model
from ..planner.planfile import model_of, request_of
from ..planner.request import Request
from ..planner.workload import Method
from ..strategies.space import NAMES
from .configuring import assessed, offload_groups, where_kept


def candidate_of(
    document: Mapping[str, Any], *, model: Model | None = None, wanted: Request | None = None
) -> Candidate:
    """The candidate of a plan file.

    Args:
        document: from ``read_plan``.
        model: another model instead of the plan's, such as one of fewer layers.
        wanted: another request instead of the plan's, such as one for fewer GPUs.

    Raises:
        InputError: the decision cannot be expressed with today's catalog, or contradicts its request.
    """
    chosen, model = document["decision"], model or model_of(document)
    asked = wanted or decided(request_of(document), chosen)
    layers = min(int(chosen["checkpointed_layers"]), model.layers)
    return assessed(
        model,
        asked.suited(model),
        facts_of(chosen, layers),
        layers=layers,
        groups=offload_groups(chosen.get("offload_ratio") or 1.0),
        micro_batch=int(chosen["micro_batch"]),
        offer=str(chosen["offer"]),
    )


def decided(request: Request, chosen: Mapping[str, Any]) -> Request:
    """A request narrowed to what was decided: this GPU, so many of them, this method."""
    gpus = int(chosen["gpus"])
    return replace(
        request,
        gpus=(str(chosen["gpu"]),),
        gpu_count=gpus,
        nodes=None,
        methods=(Method(chosen["method"]),),
        max_gpus=max(request.max_gpus, gpus),
    )


def facts_of(chosen: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """What `one_family` asks of a decision's stack: stage, offload, share, where checkpoints lie."""
    facts = dict(NAMES[name] for name in map(str, chosen["strategies"]) if name in NAMES)
    return {
        "zero_stage": int(chosen["zero_stage"]),
        "offload_optimizer": facts.get("offload_optimizer"),
        "offload_parameters": facts.get("offload_parameters"),
        "partial_share": 0 < float(chosen.get("offload_ratio") or 1.0) < 1,
        "checkpointing": where_kept(layers, facts.get("checkpointing") == "host"),
    }
