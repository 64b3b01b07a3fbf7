"""A searched space under other prices or tokens: the same columns with other bills, nothing is folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from .hardware import Offer
from .program import Column
from .search import Point, Space, billed
from .workload import Workload


def rebilled(space: Space, workload: Workload, offer: Callable[[Offer], Offer] = lambda o: o) -> Space:
    """The space with every column's bill computed again.

    Args:
        space: explored for the same model, sequence length and batch.
        workload: what counts now. Where its tokens are others, columns that would now be best may have been dropped.
        offer: what becomes of an offer; it must keep the order that the space was pruned by (`Stress.keeps_order`).
    """
    points = [_moved(p, workload, offer) for p in space.points]
    return Space(
        points=points,
        columns=list(_columns(space.columns, points)),
        infeasible=list(_columns(space.infeasible, points)),
        misses=[_moved(p, workload, offer) for p in space.misses],
        considered=space.considered,
        dropped=space.dropped.copy(),
    )


def _moved(point: Point, workload: Workload, offer: Callable[[Offer], Offer]) -> Point:
    return replace(point, offer=offer(point.offer), setting=replace(point.setting, workload=workload))


def _columns(columns: Sequence[Column], points: Sequence[Point]) -> Iterable[Column]:
    """Columns with the bills of their points, but those whose runs would not end."""
    again = (billed(column, points[column.key]) for column in columns)
    return (column for column in again if column is not None)
