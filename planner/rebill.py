"""A searched space under other prices, tokens or failure rates: the same columns at other rates, nothing is folded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from .hardware import Offer
from .program import Column
from .search import Point, Space
from .units import HOUR_S
from .workload import Workload


def rebilled(space: Space, workload: Workload, offer: Callable[[Offer], Offer] = lambda o: o) -> Space:
    """The space with every column's dollars and hours per second of step time computed again.

    Args:
        space: explored for the same model, sequence length and batch.
        workload: the tokens that count now.
        offer: what becomes of an offer; it must keep the order that the space was pruned by (`Stress.keeps_order`).
    """
    points = [_moved(p, workload, offer) for p in space.points]
    return Space(
        points=points,
        columns=_columns(space.columns, points),
        infeasible=_columns(space.infeasible, points),
        misses=[_moved(p, workload, offer) for p in space.misses],
        considered=space.considered,
        dropped=space.dropped.copy(),
    )


def _moved(point: Point, workload: Workload, offer: Callable[[Offer], Offer]) -> Point:
    return replace(point, offer=offer(point.offer), setting=replace(point.setting, workload=workload))


def _columns(columns: Sequence[Column], points: Sequence[Point]) -> list[Column]:
    """Columns with the rates of their points."""
    found = []
    for column in columns:
        bill = points[column.key].per_step_s
        found.append(replace(column, usd_per_s=bill.usd, run_s_per_s=bill.hours * HOUR_S))
    return found
