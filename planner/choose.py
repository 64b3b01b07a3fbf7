"""Solve the integer program over a searched space: the best candidate, or the closest one where nothing is feasible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .candidate import Candidate
from .program import TIE, Choice, Column, Limits, Objective, Shortage, shortage, solve
from .search import Point, Space, build_missed, longest_stay_s
from .units import HOUR_S
from .workload import Method

LOOKS = 60  # exact folds spent on finding a good incumbent, at most
ROUNDING = 1e-9  # relative; sums of floats in another order
ELASTIC = 60  # columns of the elastic program: those that are least infeasible


def best(
    space: Space,
    limits: Limits,
    objective: Objective = Objective.COST,
    *,
    keep: Callable[[Point, Column], bool] = lambda p, c: True,
    runners_up: int = 0,
) -> tuple[Candidate, Choice] | None:
    """Solve the program over the columns that pass ``keep``; None where nothing is feasible.

    Columns whose lower bound is above a confirmed point cannot win; ``runners_up`` of them are weighed all the same.
    """
    columns = [c for c in space.columns if c.gpus <= limits.max_gpus and keep(space.points[c.key], c)]
    pool = _pool(space, columns, limits, objective, runners_up)

    def dispose(key: int, layers: int, groups: int) -> bool:
        found = space.candidate(key, layers, groups)
        return found.fits and _within(found, limits)

    choice = solve(pool, limits, dispose, objective, considered=space.considered)
    return None if choice is None else (space.candidate(choice.key, choice.layers, choice.groups), choice)


def _pool(
    space: Space, columns: Sequence[Column], limits: Limits, objective: Objective, runners_up: int
) -> list[Column]:
    """Columns that may still be best: those whose lower bound is not above the best point found by looking.

    A look costs one exact fold; columns are looked at by their bound, so that few are needed.
    """
    bounds = sorted(((_bound(c, limits, objective), c) for c in columns), key=lambda pair: (pair[0], pair[1].key))
    incumbent, looked, kept = math.inf, 0, list[Column]()
    for bound, column in bounds:
        if not math.isfinite(bound) or (bound > incumbent * (1 + TIE) and len(kept) >= runners_up):
            break
        kept.append(column)
        if looked < LOOKS and column.quick is not None:
            looked += 1
            value = _value(column, column.quick[1], objective)
            if value < incumbent and _confirmed(space, column, column.quick[0], limits):
                incumbent = value
    return kept


def _value(column: Column, step_s: float, objective: Objective) -> float:
    """The objective for a step of so many seconds."""
    return {
        Objective.COST: column.usd(step_s),
        Objective.TIME: column.run_s(step_s),
        Objective.GPUS: float(column.gpus),
    }[objective]


def _bound(column: Column, limits: Limits, objective: Objective) -> float:
    """Least value of the objective over the box; infinite where the rows or the limits cannot be met."""
    if column.quick is None:
        return math.inf
    least = column.quick[1]
    longest_s = min(limits.deadline_s, column.longest_s)
    if column.usd(least) > limits.budget_usd or column.run_s(least) > longest_s:
        return math.inf
    return _value(column, least, objective)


def _confirmed(space: Space, column: Column, point: tuple[int, int], limits: Limits) -> bool:
    found = space.candidate(column.key, *point)
    return found.fits and _within(found, limits)


def _within(found: Candidate, limits: Limits) -> bool:
    """Whether budget, deadline and the offer's longest stay hold, but for rounding."""
    longest_s = min(limits.deadline_s, longest_stay_s(found.offer))
    most_usd, most_s = limits.budget_usd * (1 + ROUNDING), longest_s * (1 + ROUNDING)
    return found.cost.usd <= most_usd and found.cost.hours * HOUR_S <= most_s


def closest(space: Space, limits: Limits, methods: Sequence[Method]) -> tuple[Candidate, Shortage] | None:
    """The elastic answer where nothing is feasible: the least infeasible candidate and what it breaks most."""
    if space.misses:
        build_missed(space)
        space.misses.clear()
    every = [c for c in space.columns + space.infeasible if space.points[c.key].family.method in methods]
    columns = sorted(every, key=lambda c: _violation(c, limits))[:ELASTIC]
    found = shortage(columns, limits)
    if found is None:
        return None
    column = next(c for c in columns if c.key == found.key)
    point = (column.box.high_layers, column.box.high_groups)
    return space.candidate(found.key, *point), found


def _violation(column: Column, limits: Limits) -> float:
    """Sum of relative excesses at their least."""
    least = column.least_step_s()
    over = [row.line.least(column.box) / max(row.limit, 1.0) - 1 for row in column.rows]
    over += [column.usd(least) / limits.budget_usd - 1, column.run_s(least) / limits.deadline_s - 1]
    over.append(column.run_s(least) / column.longest_s - 1)
    over.append(column.gpus / limits.max_gpus - 1)
    return sum(max(0.0, x) for x in over)
