"""Explore a request: the machines and stacks that it allows, of which a question then takes the one it is after."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ..planner.computation import Adapters, default_targets
from ..planner.decide import Search
from ..planner.machines import offers_for
from ..planner.model import Model
from ..planner.program import Limits
from ..planner.request import Request
from ..planner.search import Demand, explore
from ..planner.stress import AS_ASSUMED, Stress
from ..planner.workload import Method, Precision
from ..strategies.space import Choices, families, known_name

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """No progress."""


def choices_of(wanted: Request, model: Model) -> Choices:
    """The strategies' part of a request, all methods: those not allowed are shown as alternatives."""
    return Choices(
        methods=tuple(Method),
        require=tuple(known_name(name, where="--require") for name in wanted.require),
        forbid=tuple(known_name(name, where="--forbid") for name in wanted.forbid),
        adapters=Adapters(rank=wanted.lora_rank, targets=wanted.lora_targets or default_targets(model)),
    )


def search(
    model: Model,
    wanted: Request,
    progress: Progress,
    methods: tuple[Method, ...] = tuple(Method),
    stress: Stress = AS_ASSUMED,
    *,
    most_usd: float = math.inf,
    most_hours: float = math.inf,
) -> Search:
    """Explore a request; alternatives are drawn from all methods, the decision from those allowed.

    Args:
        model: what is trained.
        wanted: the request.
        progress: told of each group of machines.
        methods: that are explored.
        stress: what turns out other than assumed.
        most_usd: machines that must cost more are left out; quicker, where nothing dearer is of interest.
        most_hours: likewise.
    """
    wanted.check(model)
    choices = replace(choices_of(wanted, model), methods=methods)
    families(replace(choices, methods=wanted.allowed), model)  # an impossible requirement is an error for these only
    demand = _demand(wanted, choices, most_usd, most_hours)
    offers = [stress.offer(offer) for offer in offers_for(wanted)]
    space = explore(stress.workload(wanted.workload(model)), offers, families(choices, model), demand, progress)
    limits = Limits(budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, max_gpus=wanted.max_gpus)
    return Search(
        request=wanted,
        model=model,
        space=space,
        limits=limits,
        again=lambda other: search(model, other, silent, other.allowed),
    )


def _demand(wanted: Request, choices: Choices, most_usd: float, most_hours: float) -> Demand:
    """What the search asks of every group of machines."""
    return Demand(
        precision=Precision(choices.required("precision") or choices.precision),
        max_gpus=wanted.max_gpus,
        gpus=wanted.gpu_count,
        nodes=wanted.nodes,
        nvme_path=wanted.nvme_path,
        most_usd=most_usd,
        most_hours=most_hours,
    )
