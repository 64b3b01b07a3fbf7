"""From amounts of work to seconds: one rate per resource, overlap of side streams, one step.

    compute = max(kernels, launches)
    part    = compute + max(side - (1 - 1/L) compute, side / L, interference * collectives)    of L layers
    step    = gas * (forward + backward) + once

Every rate is a datasheet peak times a share from configs/efficiency.toml. Work at the optimizer step hides behind
nothing. What runs on side streams is added up, as if one stream did it: a cautious choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..hardware import Node
from ..parallel import Places
from ..work import Group, Resource, When, Work
from ..workload import Precision
from .fabrics import every as network_figure
from .grounds import Ground, ground_of
from .matmul import attention_s_per_flop, matmul_s_per_flop
from .network import collective_s, straggler_factor
from .parts import (
    MICRO_STEP,
    PARTS,
    Buckets,
    PartTime,
    Sums,
    both,
    bounds_s,
    fill,
    part_exposed_s,
    part_s,
    update_bounds_s,
)
from .rates import Rates, rates


@dataclass(frozen=True, slots=True)
class TimeTerm:
    """One term of a step's time: all of it, and the part that nothing hides."""

    name: str
    seconds_per_step: float
    exposed_s: float
    limited_by: str
    ground: Ground  # the figure it rests on
    amount: float = 0.0  # FLOPs, bytes or kernels a step; 0: it follows from other terms


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of one rank; all ranks run alike."""

    forward_s: float  # per micro-step
    backward_s: float  # per micro-step, without what happens once per step
    gradient_accumulation_steps: int
    boundary_s: float  # once per step: last reductions, optimizer, gather of updated weights
    terms: tuple[TimeTerm, ...]
    fill_s: float = 0.0  # once per step: filling and draining a pipeline

    @property
    def step_s(self) -> float:
        """Seconds of one optimizer step."""
        each = self.forward_s + self.backward_s
        return self.gradient_accumulation_steps * each + self.boundary_s + self.fill_s


def _seconds(work: Work, rate: Rates, node: Node, places: Places) -> float:
    """Time of one amount of work with nothing in its way."""
    unit_s = rate.unit_s.get(work.resource)
    if unit_s is not None:
        return work.amount * unit_s
    if work.resource is Resource.MATMUL:
        per_flop = matmul_s_per_flop(rate, work.shape, work.bits) if work.shape else 1.0 / rate.matmul_flop_per_s
        return work.amount * work.slowed * per_flop
    if work.resource is Resource.ATTENTION:
        return work.amount * attention_s_per_flop(rate, work.shape)
    nodes, ranks_per_node = places[work.group]
    return collective_s(
        work.resource,
        work.amount,
        message_bytes=work.message_bytes,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        node=node,
    )


def _priced(
    work: Sequence[Work], rate: Rates, node: Node, places: Places, given: Buckets | None = None
) -> tuple[list[tuple[Work, float]], Buckets, Buckets]:
    """Each amount's seconds, and their sums by part: in every micro-step (on top of ``given``), and once per step."""
    timed = [(item, _seconds(item, rate, node, places)) for item in work]
    every = {when: both(given[when], Sums()) if given else Sums() for when in PARTS}
    once = {when: Sums() for when in PARTS}
    for item, seconds in timed:
        fill((once if item.once or item.when is When.STEP else every)[item.when], item, seconds)
    return timed, every, once


def compute_sums(compute: Sequence[Work], node: Node, *, ranks_per_node: int, precision: Precision) -> Buckets:
    """Seconds of one micro-step's compute by part, to be shared by all stacks that compute the same."""
    return _priced(compute, rates(node, ranks_per_node, precision), node, {})[1]


def price_parts(
    work: Sequence[Work],
    node: Node,
    *,
    nodes: int,
    ranks_per_node: int,
    gradient_accumulation_steps: int,
    layers: int,
    precision: Precision = Precision.BF16,
    given: Buckets | None = None,
) -> tuple[PartTime, ...]:
    """The step of `price` as parts: sum of times x max(bounds) is its step_s.

    Forward and backward of every micro-step but the last; of the last, with what happens once per step; the update.
    ``given`` are the sums of compute that ``work`` then leaves out.
    """
    rate = rates(node, ranks_per_node, precision, layers)
    _, every, once = _priced(work, rate, node, {Group.DATA: (nodes, ranks_per_node)}, given)
    update, late = once[When.STEP], straggler_factor(nodes * ranks_per_node)
    parts = (
        *(PartTime(gradient_accumulation_steps - 1, bounds_s(every[when], rate)) for when in MICRO_STEP),
        *(PartTime(1, bounds_s(both(every[when], once[when]), rate)) for when in MICRO_STEP),
        PartTime(1, tuple(update_bounds_s(update))),
    )
    if late == 1.0:
        return parts
    return tuple(PartTime(part.times, tuple([late * bound for bound in part.bounds_s])) for part in parts)


def price(
    work: Sequence[Work],
    node: Node,
    *,
    nodes: int,
    ranks_per_node: int,
    gradient_accumulation_steps: int,
    layers: int,
    precision: Precision = Precision.BF16,
    places: Places | None = None,
) -> StepTime:
    """Seconds of one optimizer step from all its work.

    Args:
        work: of one rank: one micro-step's compute and traffic, and what happens once per step.
        node: the machine.
        nodes: n.
        ranks_per_node: GPUs in use in each.
        gradient_accumulation_steps: micro-steps per optimizer step.
        layers: L, over which a micro-step's work is spread.
        precision: of the multiplications.
        places: where each group of ranks lies; None: all ranks are data-parallel.

    Raises:
        ValueError: the GPU has no units for the precision (`refusal`), or the network between nodes is unknown.
    """
    rate = rates(node, ranks_per_node, precision, layers)
    where = places or {Group.DATA: (nodes, ranks_per_node)}
    timed, every, once = _priced(work, rate, node, where)
    last = {when: both(every[when], once[when]) for when in MICRO_STEP}
    forward_s, backward_s = (part_s(every[when], rate) for when in MICRO_STEP)
    update, late = once[When.STEP], straggler_factor(nodes * ranks_per_node)
    once_s = sum(part_s(last[when], rate) for when in MICRO_STEP) - forward_s - backward_s
    alone = StepTime(
        forward_s=forward_s,
        backward_s=backward_s,
        gradient_accumulation_steps=gradient_accumulation_steps,
        boundary_s=once_s + max(update_bounds_s(update)),
        terms=_terms(timed, every, {**last, When.STEP: update}, rate, gradient_accumulation_steps, node, where),
    )
    return _waiting(alone, late - 1.0) if late > 1.0 else alone


STRAGGLERS = "waiting for the slowest rank"


def _waiting(alone: StepTime, share: float) -> StepTime:
    """A step in which every part waits so much longer for the slowest."""
    waited = share * alone.step_s
    loss = network_figure("straggler")
    ground = Ground("fabrics.toml straggler", loss.kind, loss.source)
    term = TimeTerm(STRAGGLERS, waited, waited, "stragglers", ground)
    return replace(
        alone,
        forward_s=alone.forward_s * (1 + share),
        backward_s=alone.backward_s * (1 + share),
        boundary_s=alone.boundary_s * (1 + share),
        terms=(*alone.terms, term),
    )


def _shown(part: Sums, rate: Rates, *, hides: bool) -> tuple[float, float]:
    """Shares of a part's side work and of its launches that lengthen it."""
    side = 1.0
    if hides:
        side = part_exposed_s(part, rate) / part.side_s if part.side_s else 0.0
    launches = max(0.0, part.launches_s - part.kernels_s) / part.launches_s if part.launches_s else 0.0
    return side, launches


def _slowest(part: Sums) -> Resource | None:
    """The stage that sets the pace of a pipeline; the others hide behind it."""
    return max(part.pipelined_s, key=part.pipelined_s.__getitem__, default=None)


def _share(work: Work, shown: tuple[float, float]) -> float:
    """Share of one amount of work that lengthens its part."""
    if work.resource is Resource.LAUNCH:
        return shown[1]
    return shown[0] if work.side else 1.0


def _terms(
    timed: Sequence[tuple[Work, float]],
    every: dict[When, Sums],
    last: dict[When, Sums],
    rate: Rates,
    micro_steps: int,
    node: Node,
    places: Places,
) -> tuple[TimeTerm, ...]:
    """One term per name and resource; the exposed seconds of all terms add up to the step."""
    usual = {when: _shown(every[when], rate, hides=True) for when in MICRO_STEP}
    final = {when: _shown(part, rate, hides=when is not When.STEP) for when, part in last.items()}
    slowest = _slowest(last[When.STEP])
    totals: dict[tuple[str, Resource], list[float]] = {}
    first: dict[tuple[str, Resource], Work] = {}
    for work, seconds in timed:
        total = totals.setdefault((work.name, work.resource), [0.0, 0.0, 0.0])
        first.setdefault((work.name, work.resource), work)
        shown = float(work.resource is slowest) if work.pipelined else _share(work, final[work.when])
        times = 1
        if not work.once and work.when is not When.STEP:
            times = micro_steps
            shown += (micro_steps - 1) * _share(work, usual[work.when])
        total[0] += seconds * times
        total[1] += seconds * shown
        total[2] += work.amount * times
    return tuple(
        TimeTerm(name, total[0], total[1], resource.value, _ground(first[name, resource], node, places), total[2])
        for (name, resource), total in totals.items()
    )


def _ground(work: Work, node: Node, places: Places) -> Ground:
    return ground_of(work, node, *places.get(work.group, (1, 1)))
