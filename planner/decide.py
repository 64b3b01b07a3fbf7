"""From a searched space to the decision, its alternatives, the frontier, or the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .candidate import LABELS, Candidate
from .choose import best, closest
from .documents import no_plan_document, summary
from .errors import NoPlan
from .machines import makes_up, offers_for
from .model import Model
from .program import Choice, Column, Limits, Objective, Shortage
from .request import Request
from .search import UNKNOWN_STORE, Point, Space
from .staleness import flag
from .units import HOUR_S, duration, gib_count, usd
from .workload import Method


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way to run the job, or why there is none."""

    label: str
    candidate: Candidate | None
    note: str = ""


RUNNERS_UP = 12  # columns the decision's program weighs at least, where there are so many
FRONTIER_POINTS = 8
FRONTIER_STEP = 1.5  # each point of the frontier may take this factor less time than the one before
NO_WAY_OUT = (
    "neither more time, more money nor another method helps; "
    "try other --gpus, a shorter --seq-len, or fewer --require and --forbid"
)
UNKNOWN_HINT = " (offers whose host RAM is unknown were left out; --host-memory-gib states it)"
LONGER_HINT = " (another --tier, --cloud or --prices may let machines for longer)"
STORAGE = ("zero", "offload", "checkpointing")  # names that say where states and activations live

Found = tuple[Candidate, Choice]


@dataclass(frozen=True, kw_only=True)
class Search:
    """A request with everything the integer program needs; ``again`` searches a changed request."""

    request: Request
    model: Model
    space: Space
    limits: Limits
    again: Callable[[Request], Search]

    def cheapest(
        self,
        method: Method | None = None,
        limits: Limits | None = None,
        objective: Objective = Objective.COST,
        runners_up: int = 0,
    ) -> Found | None:
        """The cheapest (or quickest) candidate of a method (or of those allowed), under limits."""
        allowed = (method,) if method else self.request.allowed

        def keep(point: Point, column: Column) -> bool:
            return point.family.method in allowed

        return best(self.space, limits or self.limits, objective, keep=keep, runners_up=runners_up)

    @property
    def any_money(self) -> Limits:
        """The same limits without the budget."""
        return replace(self.limits, budget_usd=math.inf)

    @property
    def any_time(self) -> Limits:
        """The same limits without the deadline."""
        return replace(self.limits, deadline_s=math.inf)


def decide(search: Search) -> Found:
    """The decision, as `decided` finds it.

    Raises:
        NoPlan: nothing is feasible.
    """
    found = decided(search)
    if found is None:
        raise _no_plan(search)
    return found


def decided(search: Search) -> Found | None:
    """With an amount as budget the most faithful method that it pays for; else the cheapest of those allowed."""
    if not math.isfinite(search.request.budget_usd):
        return search.cheapest(runners_up=RUNNERS_UP)
    by_method = (search.cheapest(method, runners_up=RUNNERS_UP) for method in search.request.allowed)
    return next((f for f in by_method if f), None)


def alternatives(search: Search, chosen: Candidate) -> tuple[Alternative, ...]:
    """Cheapest of each method; half and twice the GPUs."""
    by_method = tuple(_cheapest_of(search, method) for method in Method)
    by_size = tuple(
        _with_gpus(search, chosen.method, label, gpus)
        for label, gpus in (("half the GPUs", chosen.gpus / 2), ("twice the GPUs", chosen.gpus * 2))
    )
    return by_method + by_size


def _cheapest_of(search: Search, method: Method) -> Alternative:
    found = search.cheapest(method, search.any_money)
    label = f"cheapest {method.value}"
    if found is None:
        return Alternative(label=label, candidate=None, note=_why_none(search, method))
    allowed = method in search.request.allowed
    over = found[0].cost.usd > search.limits.budget_usd
    note = "over the budget" if over else ("" if allowed else "changes what is trained; not asked for")
    return Alternative(label=label, candidate=found[0], note=note)


def _with_gpus(search: Search, method: Method, label: str, gpus: float) -> Alternative:
    """The cheapest plan on exactly so many GPUs: its own search, since the first one dropped what others beat."""
    number = int(gpus)
    if number != gpus:
        return Alternative(label=label, candidate=None, note="one GPU has no half")
    if not _offered(search, number):
        return Alternative(
            label=label, candidate=None, note=f"no offer makes up {number} GPU{'' if number == 1 else 's'}"
        )
    if number > search.request.max_gpus or search.request.sequences % number:
        return Alternative(
            label=label,
            candidate=None,
            note="above --max-gpus" if number > search.request.max_gpus else "the global batch does not divide",
        )
    wanted = replace(search.request, gpu_count=number, nodes=None, methods=(method,), budget=None)
    other = search.again(wanted)
    found = other.cheapest()
    return Alternative(
        label=label, candidate=found[0] if found else None, note="" if found else _why_none(other, method)
    )


def _offered(search: Search, gpus: int) -> bool:
    """Whether some offer's nodes make up so many GPUs."""
    return any(makes_up(offer.node, gpus) for offer in offers_for(search.request))


def _why_none(search: Search, method: Method) -> str:
    found = closest(search.space, search.any_money, (method,))
    return (
        f"{_named(found[1])} short by {_amount(found[1], found[1].short)}"
        if found
        else "no machine or strategy is left"
    )


def frontier(search: Search, chosen: Candidate) -> tuple[Candidate, ...]:
    """Cheapest plans of the chosen method under ever shorter deadlines (epsilon-constraint)."""
    limits, points = replace(search.any_money, deadline_s=math.inf), list[Candidate]()
    while len(points) < FRONTIER_POINTS and (found := search.cheapest(chosen.method, limits)):
        points.append(found[0])
        limits = replace(limits, deadline_s=found[0].cost.hours * HOUR_S / FRONTIER_STEP)
    return tuple(points)


class _NoPlanFound(NoPlan):
    """A NoPlan with its JSON document."""

    def __init__(self, message: str, document: dict[str, Any]) -> None:
        super().__init__(message)
        self.document = document


@dataclass(frozen=True, kw_only=True)
class Short:
    """What stops a request: in a few words, in full, and the candidate that comes closest."""

    brief: str
    text: str
    nearest: Candidate | None


def _no_plan(search: Search) -> NoPlan:
    """What is short by how much, and the cheapest change of the request that helps."""
    short = short_of(search)
    outs = _ways_out(search)
    ways = "ways out: " + "; ".join(out["text"] for out in outs) if outs else NO_WAY_OUT
    message = f"no plan: {short.text}; {ways}"
    document = no_plan_document(search.request, message, short.nearest, outs, dict(search.space.dropped))
    return _NoPlanFound(message, document)


def short_of(search: Search) -> Short:
    """What an infeasible request is short of, and by how much."""
    return _short_of_limit(search) or _short_of_memory(search)


def _short_of_limit(search: Search) -> Short | None:
    """The budget or the deadline is what is short: by how much against the best that exists. None where memory is."""
    limits = search.limits
    if found := search.cheapest(limits=search.any_money):
        c = found[0]
        short = usd(c.cost.usd - limits.budget_usd)
        text = f"the budget of {usd(limits.budget_usd)} is short by {short}: the cheapest is {told(c)}"
        return Short(brief=f"budget short by {short}{_or_late(search)}", text=text, nearest=c)
    if found := quickest(search):
        c = found[0]
        short = duration(c.cost.hours * HOUR_S - limits.deadline_s)
        text = f"the deadline of {duration(limits.deadline_s)} is short by {short}: the quickest is {told(c)}"
        return Short(brief=f"deadline short by {short}", text=text, nearest=c)
    return None


def _or_late(search: Search) -> str:
    """By how much the deadline is short instead, where the budget alone admits a plan."""
    found = search.cheapest(limits=search.any_time, objective=Objective.TIME)
    late_s = found[0].cost.hours * HOUR_S - search.limits.deadline_s if found else 0.0
    return f", or deadline by {duration(late_s)}" if late_s > 0 else ""


def quickest(search: Search, method: Method | None = None) -> Found | None:
    """The least time of a method (or of those allowed), whatever it costs."""
    return search.cheapest(method, replace(search.any_money, deadline_s=math.inf), Objective.TIME)


def told(c: Candidate) -> str:
    """A plan in a few words."""
    machines = f"{c.gpus} x {c.offer.node.gpu.name} ({c.method.value})"
    old = flag(c.offer.date)
    return f"{usd(c.cost.usd)} in {duration(c.cost.hours * HOUR_S)} on {machines}" + (f", price {old}" if old else "")


def _short_of_memory(search: Search) -> Short:
    """The elastic program's answer, or why there is no candidate at all."""
    memory_alone = replace(search.limits, budget_usd=math.inf, deadline_s=math.inf)
    nearest = closest(search.space, memory_alone, search.request.allowed)
    if nearest is None:
        reasons = "; ".join(f"{reason} ({number} times)" for reason, number in search.space.dropped.most_common(3))
        text = f"every candidate was dropped: {reasons or 'no machine has the GPUs asked for'}"
        return Short(brief=text, text=text, nearest=None)
    c, short = nearest
    stack = "+".join(name for name in c.stack.names if name.startswith(STORAGE))
    what = f"{c.gpus} x {c.offer.node.gpu.name} with {c.method.value}, {stack}"
    limit, missing = _amount(short, short.limit), _amount(short, short.short)
    hint = UNKNOWN_HINT if search.space.dropped[UNKNOWN_STORE] else ""
    if short.constraint == "maximum_hours":
        hint = LONGER_HINT
    text = f"the closest is {what}: {_named(short)} of {limit} is short by {missing}{hint}"
    return Short(brief=f"{_named(short)} short by {missing}", text=text, nearest=c)


def _named(short: Shortage) -> str:
    """A constraint of the program as people call it: "GPU memory in the loss phase"."""
    kind, _, phase = short.constraint.partition("_")
    return (
        f"GPU memory in the {phase.replace('_', ' ')} phase"
        if kind == "gpu"
        else LABELS.get(short.constraint, short.constraint)
    )


def _amount(short: Shortage, value: float) -> str:
    """A quantity in the unit of its constraint."""
    if short.constraint == "budget":
        return usd(value)
    return duration(value) if short.constraint in ("deadline", "maximum_hours") else gib_count(value)


def _ways_out(search: Search) -> list[dict[str, Any]]:
    """Single changes of the request that admit a plan, cheapest first."""
    trials: list[tuple[str, Method | None, Limits]] = [
        ("any budget", None, search.any_money),
        ("any deadline", None, search.any_time),
        *((f"--method {m.value}", m, search.limits) for m in Method if m not in search.request.allowed),
    ]
    outs = []
    for label, method, limits in trials:
        if limits == search.limits and method is None:
            continue
        if found := search.cheapest(method, limits):
            c = found[0]
            outs.append({"change": label, "text": f"with {label} {told(c)}", **summary(c)})
    return sorted(outs, key=lambda out: out["cost_usd"])
