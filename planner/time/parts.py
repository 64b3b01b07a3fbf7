"""Parts of a step while it is priced: sums by stream, what hides behind what, the bounds whose maximum it is.

part = compute + max(side - (1 - 1/L) compute, side / L, interference * collectives)    of L layers
compute = max(kernels, launches)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ..work import Resource, When, Work
from .network import COLLECTIVES
from .rates import Rates


@dataclass(slots=True)
class Sums:
    """Sums of one part of a step while it is priced."""

    kernels_s: float = 0.0
    launches_s: float = 0.0
    side_s: float = 0.0
    collectives_s: float = 0.0  # of side_s
    blocking_s: float = 0.0  # neither compute nor on a side stream: nothing hides it, and it hides nothing
    pipelined_s: dict[Resource, float] = field(default_factory=dict)  # stages of a pipeline over sub-groups

    @property
    def compute_s(self) -> float:
        """Kernels, or their launches where those take longer."""
        return max(self.kernels_s, self.launches_s)


MICRO_STEP = (When.FORWARD, When.BACKWARD)
PARTS = tuple(When)
_GPU_WORK = frozenset((Resource.MATMUL, Resource.ATTENTION, Resource.MEMORY))


def fill(bucket: Sums, work: Work, seconds: float) -> None:
    """Add one amount of work to its part."""
    if work.pipelined:
        bucket.pipelined_s[work.resource] = bucket.pipelined_s.get(work.resource, 0.0) + seconds
    elif work.resource is Resource.LAUNCH:
        bucket.launches_s += seconds
    elif work.side:
        bucket.side_s += seconds
        bucket.collectives_s += seconds if work.resource in COLLECTIVES else 0.0
    elif work.resource in _GPU_WORK:
        bucket.kernels_s += seconds
    else:
        bucket.blocking_s += seconds


def exposed_s(side_s: float, collectives_s: float, compute_s: float, *, layers: int, interference: float) -> float:
    """Seconds by which side work of L equal layers lengthens its part.

    Formula: max(side - (1 - 1/L) compute, side / L, interference * collectives). The first layer's side work has
    nothing to hide behind, that of each other layer the compute of the one before; what is longer than that shows.
    Collectives that are hidden still take multiprocessors and memory bandwidth from the kernels they hide behind;
    copies to the host take neither.

    >>> exposed_s(3.0, 3.0, 2.0, layers=2, interference=0.25)  # 1.5 hides behind the other layer's 1.0
    2.0
    >>> exposed_s(0.5, 0.4, 2.0, layers=10, interference=0.25)
    0.1
    """
    return max(side_s - (1 - 1 / layers) * compute_s, side_s / layers, interference * collectives_s)


def part_s(part: Sums, rate: Rates) -> float:
    """Seconds of one part of a micro-step."""
    return part.compute_s + part.blocking_s + part_exposed_s(part, rate)


def part_exposed_s(part: Sums, rate: Rates) -> float:
    """Seconds by which a part's side work lengthens it."""
    return exposed_s(
        part.side_s,
        part.collectives_s,
        part.compute_s,
        layers=rate.layers,
        interference=rate.interference_share,
    )


@dataclass(frozen=True, slots=True)
class PartTime:
    """A part of the step: how often it happens, and lower bounds of its seconds whose maximum it is."""

    times: int
    bounds_s: tuple[float, ...]


def bounds_s(part: Sums, rate: Rates) -> tuple[float, ...]:
    """The maximum of these is `part_s`; each is linear in the part's work.

    compute + max(side - (1 - 1/L) compute, side / L, interference collectives), compute = max(kernels, launches).
    """
    return tuple(
        bound + part.blocking_s
        for compute in (part.kernels_s, part.launches_s)
        for bound in (
            compute / rate.layers + part.side_s,
            compute + part.side_s / rate.layers,
            compute + rate.interference_share * part.collectives_s,
        )
    )


def update_bounds_s(update: Sums) -> Iterator[float]:
    """The maximum of these is the optimizer step: the slowest stage of the pipeline beside what nothing hides."""
    for compute in (update.kernels_s, update.launches_s):
        for stage in update.pipelined_s.values() or (0.0,):
            yield compute + update.side_s + update.blocking_s + stage


def both(every: Sums, once: Sums) -> Sums:
    """The last micro-step's part: what every one does and what happens once."""
    return Sums(
        kernels_s=every.kernels_s + once.kernels_s,
        launches_s=every.launches_s + once.launches_s,
        side_s=every.side_s + once.side_s,
        collectives_s=every.collectives_s + once.collectives_s,
        blocking_s=every.blocking_s + once.blocking_s,
    )


Buckets = dict[When, Sums]
