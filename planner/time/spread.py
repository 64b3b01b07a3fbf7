"""How sure a step's seconds are: an 80 % band from the spread of the rates it rests on.

    band = step (1 +- z sqrt(s_0^2 + sum_r (e_r s_r)^2))

Symbols: e_r share of the step that resource r lengthens it by, s_r relative standard deviation of the figure that turns
its amounts into seconds, s_0 that of everything the model does not know (software versions, clocks, one machine against
another), z = 1.2816 for 80 %. Errors of one resource move together, those of different resources do not.

Source:
    configs/efficiency.toml, [spread]; GUM (JCGM 100:2008) §5.1.2 for the sum of uncorrelated parts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from ..efficiency import value
from .grounds import KINDS
from .step import StepTime

COVERAGE = 0.80
Z = NormalDist().inv_cdf((1 + COVERAGE) / 2)
WIDEST = 0.95  # half of a band at most, as a share of the step: a step takes some time, however little is known of it
COLLECTIVES = frozenset({"all-reduce", "all-gather", "reduce-scatter", "send"})
HOST_LINKS = frozenset({"host to GPU", "GPU to host", "pageable host memory to GPU"})
DRIVES = frozenset({"NVMe read", "NVMe write"})


@dataclass(frozen=True, slots=True)
class Seconds:
    """A time with its 80 % band."""

    low: float
    point: float
    upper: float


def source_of(limited_by: str) -> str:
    """The row of [spread] for a term's resource.

    >>> source_of("all-gather"), source_of("matmul")
    ('collectives', 'matmul')
    """
    for names, row in ((COLLECTIVES, "collectives"), (HOST_LINKS, "host-link"), (DRIVES, "nvme")):
        if limited_by in names:
            return row
    return limited_by.replace(" ", "-")


def relative(step: StepTime) -> float:
    """Half of the band's width, as a share of the step."""
    shares: dict[str, float] = defaultdict(float)
    for term in step.terms:
        shares[source_of(term.limited_by)] += term.exposed_s / step.step_s
    parts = [value("spread", "unknown"), *(share * value("spread", row) for row, share in shares.items())]
    return Z * sqrt(sum(part * part for part in parts))


def step_seconds(step: StepTime) -> Seconds:
    """Seconds of one optimizer step, with the band that 80 % of runs should lie in."""
    half = min(relative(step), WIDEST)
    return Seconds(step.step_s * (1 - half), step.step_s, step.step_s * (1 + half))


def rests_on(step: StepTime) -> dict[str, float]:
    """Shares of a step by how the figures it rests on are known, the surest first; they add up to one."""
    shares = dict.fromkeys(KINDS, 0.0)
    for term in step.terms:
        shares[term.ground.kind] += term.exposed_s / step.step_s
    return {kind: share for kind, share in shares.items() if share}
