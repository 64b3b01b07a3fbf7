"""planner/program.py against brute force over every integer of small random spaces."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.planner.program import Box, Column, Limits, Line, Objective, Part, Row, shortage, solve

Point = tuple[Column, int, int]

# Whole numbers: on them rows hold or not, whatever the solver's tolerance.
coefficient = st.integers(-4, 4).map(float)
gain = st.integers(0, 5).map(float)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Up to 4 layers and 3 groups; often no choice at all."""
    low_k, low_g = draw(st.integers(0, 1)), draw(st.integers(0, 1))
    return Box(low_k, low_k + draw(st.integers(0, 3)), low_g, low_g + draw(st.integers(0, 2)))


@st.composite
def columns(draw: st.DrawFn, key: int = 0) -> Column:
    """Rows of any slope; seconds that never fall with more layers, as recomputing never saves time."""
    rows = tuple(
        Row(f"r{i}", Line(draw(coefficient), draw(coefficient), draw(coefficient)), float(draw(st.integers(0, 6))))
        for i in range(draw(st.integers(0, 3)))
    )
    parts = tuple(
        Part(
            draw(st.integers(1, 3)),
            tuple(
                Line(float(draw(st.integers(10, 20))), draw(gain), draw(st.integers(-2, 3).map(float)))
                for _ in range(draw(st.integers(1, 2)))
            ),
        )
        for _ in range(draw(st.integers(1, 2)))
    )
    return Column(
        key=key,
        gpus=2 ** draw(st.integers(0, 3)),
        simplicity=draw(st.integers(0, 3)),
        usd_per_s=float(draw(st.integers(1, 5))),
        run_s_per_s=float(draw(st.integers(1, 5))),
        box=draw(boxes()),
        rows=rows,
        parts=parts,
    )


@st.composite
def spaces(draw: st.DrawFn) -> tuple[Column, ...]:
    """One to four columns."""
    return tuple(draw(columns(key)) for key in range(draw(st.integers(1, 4))))


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    """Half-way between the whole numbers that sums take, so that no sum meets a limit exactly."""
    budget = draw(st.none() | st.integers(10, 300))
    deadline = draw(st.none() | st.integers(10, 300))
    return Limits(
        budget_usd=math.inf if budget is None else budget + 0.5,
        deadline_s=math.inf if deadline is None else deadline + 0.5,
        max_gpus=draw(st.sampled_from((2, 8))),
    )


def points_of(column: Column) -> Iterator[tuple[int, int]]:
    """Every point of the box that the rows admit."""
    box = column.box
    for k in range(box.low_layers, box.high_layers + 1):
        for g in range(box.low_groups, box.high_groups + 1):
            if all(row.line.at(k, g) <= row.limit for row in column.rows):
                yield k, g


def value(objective: Objective, column: Column, k: int, g: int) -> float:
    """What the objective says of a point."""
    seconds = column.step_s(k, g)
    return {
        Objective.COST: column.usd_per_s * seconds,
        Objective.TIME: column.run_s_per_s * seconds,
        Objective.GPUS: float(column.gpus),
    }[objective]


def feasible(space: Sequence[Column], within: Limits, refuted: frozenset[tuple[int, int, int]]) -> list[Point]:
    """Every point that rows, limits and the exact ledger admit."""
    return [
        (c, k, g)
        for c in space
        if c.gpus <= within.max_gpus
        for k, g in points_of(c)
        if value(Objective.COST, c, k, g) <= within.budget_usd
        and value(Objective.TIME, c, k, g) <= within.deadline_s
        and (c.key, k, g) not in refuted
    ]


refutations = st.frozensets(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)), max_size=12)


@settings(max_examples=60)
@given(spaces(), limits(), st.sampled_from(Objective), refutations)
def test_the_program_is_brute_force(
    space: tuple[Column, ...], within: Limits, objective: Objective, refuted: frozenset[tuple[int, int, int]]
) -> None:
    """The answer is a feasible point of the least value, or none where there is none."""
    admitted = feasible(space, within, refuted)
    choice = solve(space, within, lambda key, k, g: (key, k, g) not in refuted, objective)
    if not admitted:
        assert choice is None
        return
    assert choice is not None
    chosen = (space[choice.key], choice.layers, choice.groups)
    assert chosen in admitted
    least = min(value(objective, *point) for point in admitted)
    assert value(objective, *chosen) == pytest.approx(least, rel=1e-5)
    assert choice.certificate.value == pytest.approx(least, rel=1e-5)
    assert choice.certificate.gap <= 1e-6


@settings(max_examples=40)
@given(spaces(), limits())
def test_ties_go_to_less_time_then_fewer_gpus_then_the_simpler(space: tuple[Column, ...], within: Limits) -> None:
    """Among points of one cost the order of the other goals decides."""
    admitted = feasible(space, within, frozenset())
    choice = solve(space, within, lambda *_: True)
    if choice is None:
        return

    def rank(point: Point) -> tuple[float, ...]:
        c, k, g = point
        return (value(Objective.COST, c, k, g), value(Objective.TIME, c, k, g), c.gpus, c.simplicity)

    chosen = rank((space[choice.key], choice.layers, choice.groups))
    assert chosen == pytest.approx(min(map(rank, admitted)), rel=1e-4)


@given(columns())
def test_quick_is_brute_force(column: Column) -> None:
    """The fewest seconds that the rows admit."""
    points = list(points_of(column))
    if not points:
        assert column.quick is None
        return
    assert column.quick is not None
    point, seconds = column.quick
    assert point in points
    assert seconds == column.step_s(*point) == min(column.step_s(*p) for p in points)


@given(columns())
def test_least_is_below_every_point(column: Column) -> None:
    """The bound over the box holds for each of its points."""
    assert all(column.least_step_s() <= column.step_s(k, g) for k, g in points_of(column))


@settings(max_examples=30)
@given(spaces(), limits())
def test_a_shortage_is_real(space: tuple[Column, ...], within: Limits) -> None:
    """The elastic program is short of nothing exactly where a feasible point exists."""
    roomy = Limits(budget_usd=within.budget_usd, deadline_s=within.deadline_s)
    found = shortage(space, roomy)
    if found is None:
        assert not any(c.rows for c in space)
        assert roomy == Limits()
        return
    assert (found.short < 1e-4) is bool(feasible(space, roomy, frozenset()))


def test_no_columns_no_answer() -> None:
    """An empty space has neither plan nor shortage."""
    assert solve((), Limits(), lambda *_: True) is None
    assert shortage((), Limits()) is None


@pytest.mark.parametrize("usd_per_s", [0.01, 1.0, 1000.0])
@pytest.mark.parametrize("simpler", [0, 1, 2])
def test_equal_columns_differ_in_simplicity_alone(usd_per_s: float, simpler: int) -> None:
    """Whatever the dollars are beside the number of GPUs, the simplest of equal columns is chosen."""
    space = [
        Column(
            key=key,
            gpus=2,
            simplicity=4 if key == simpler else 5,
            usd_per_s=usd_per_s,
            run_s_per_s=3.0,
            box=Box(),
            rows=(),
            parts=(Part(1, (Line(7.0),)),),
        )
        for key in range(3)
    ]
    choice = solve(space, Limits(), lambda *_: True)
    assert choice is not None
    assert choice.key == simpler
