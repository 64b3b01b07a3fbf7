"""Least squares with a prior: parameters move from their shipped values as far as rows are surer than these.

    minimise  sum_rows ((y - f(p)) / s)^2 + (p - p_0)' C^-1 (p - p_0)          least <= p <= most

Symbols: y what a row measured, f(p) what the models plan with parameters p, s the row's noise, p_0 the shipped values,
C their covariance (`parameters`). Solved by Gauss-Newton: f is nearly linear in the logarithms of rates and in bytes.
Few rows leave p near p_0, many agree on their own; a resource no row depends on does not move.

A figure is odd, and is not fitted, where |y - f(p_0)| is more than 3 standard deviations of what both could explain,
s^2 + J C J', J the derivatives of f: no believable p plans it.

Source:
    Tarantola 2005, Inverse Problem Theory, §3.2 (least squares with a Gaussian prior).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..memory import Allocator
from .cases import Case, Quantity
from .parameters import Matrix, Parameter, at, constant, covariance, parameters

ITERATIONS = 4
REFRESHES = 2
SETTLED = 1e-3  # deviations: a step below it ends the iteration
STEP = 0.02  # deviations: of the finite differences
Chosen = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Observation:
    """One figure of one row."""

    case: Case
    quantity: Quantity
    measured: float

    @property
    def noise(self) -> float:
        """Standard deviation around what the right figures would give; cache of varying lengths is hard to foretell."""
        varies = self.case.allocator is Allocator.VARYING and self.quantity in CACHED
        return constant("row", "varying") if varies else self.quantity.noise


CACHED = (Quantity.HELD, Quantity.RESERVED, Quantity.DEVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """A figure that no believable parameters plan."""

    observation: Observation
    planned: float
    explained: float  # how far from it the parameters and the row's noise reach


def observations_of(cases: Sequence[Case]) -> tuple[Observation, ...]:
    """Every figure that was measured and can be planned."""
    start = at((), ())
    return tuple(
        Observation(case, quantity, value)
        for case in cases
        for planned in [case.planned(start)]
        for quantity, value in case.quantities.items()
        if quantity in planned
    )


@dataclass(frozen=True)
class Problem:
    """Observations and the parameters that move them."""

    observations: tuple[Observation, ...]
    chosen: tuple[Parameter, ...]

    @cached_property
    def measured(self) -> Matrix:
        """y."""
        return np.array([o.measured for o in self.observations])

    @cached_property
    def noise(self) -> Matrix:
        """s."""
        return np.array([o.noise for o in self.observations])

    @cached_property
    def start(self) -> Matrix:
        """p_0."""
        return np.array([p.start for p in self.chosen])

    def planned(self, values: Matrix, like: Matrix | None = None, *, memory: bool = True, step: bool = True) -> Matrix:
        """f(p); of one half alone, the other as in ``like``."""
        calibration = at(self.chosen, values)
        cases = {id(o.case): o.case for o in self.observations}
        found = {key: case.planned(calibration, memory=memory, step=step) for key, case in cases.items()}
        same = np.zeros(len(self.observations)) if like is None else like
        return np.array([found[id(o.case)].get(o.quantity, x) for o, x in zip(self.observations, same, strict=True)])

    def derivatives(self, values: Matrix, planned: Matrix) -> Matrix:
        """J, by finite differences; no rate moves memory, no figure of memory a step."""
        columns = []
        for index, parameter in enumerate(self.chosen):
            moved = values.copy()
            step = STEP * parameter.deviation
            moved[index] += step
            is_rate = parameter.logarithmic
            columns.append((self.planned(moved, planned, memory=not is_rate, step=is_rate) - planned) / step)
        return np.array(columns).T.reshape(len(self.observations), len(self.chosen))

    @cached_property
    def first(self) -> tuple[Matrix, Matrix]:
        """f and J at the shipped values."""
        planned = self.planned(self.start)
        return planned, self.derivatives(self.start, planned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Parameters at the minimum, their covariance, and the derivatives there."""

    problem: Problem
    values: Matrix
    covariance: Matrix
    planned: Matrix
    derivatives: Matrix

    def without(self, case: Case) -> Matrix:
        """The parameters as the other rows have them, on the derivatives of the minimum."""
        kept = np.array([o.case is not case for o in self.problem.observations])
        linear = self.problem.measured - self.planned + self.derivatives @ self.values
        return _minimum(self.problem, self.derivatives[kept], linear[kept], kept)[0]


def _minimum(problem: Problem, slopes: Matrix, linear: Matrix, kept: Matrix | None = None) -> tuple[Matrix, Matrix]:
    """Of the linear problem y = J p: the parameters within their reach, and their covariance."""
    noise = problem.noise if kept is None else problem.noise[kept]
    prior = np.linalg.inv(covariance(problem.chosen))
    weighted = slopes.T / noise**2
    found = np.linalg.inv(weighted @ slopes + prior)
    values = found @ (weighted @ linear + prior @ problem.start)
    least, most = (np.array([getattr(p, end) for p in problem.chosen]) for end in ("least", "most"))
    return np.clip(values, least, most), found


def touching(observations: Sequence[Observation]) -> Problem:
    """The problem in the parameters that any of its figures measures."""
    return without(Problem(tuple(observations), parameters()), ())


def measuring(problem: Problem, slopes: Matrix) -> Chosen:
    """Which figures measure which parameters: one deviation moves them by a share of their noise that counts."""
    deviations = np.array([p.deviation for p in problem.chosen])
    found: Chosen = np.abs(slopes) * deviations >= constant("identified", "share") * problem.noise[:, None]
    return found


def _reduced(problem: Problem, planned: Matrix, slopes: Matrix, rows: Chosen, columns: Chosen) -> Problem:
    """Some observations and parameters of a problem, with what is known of them."""
    observations = tuple(o for o, kept in zip(problem.observations, rows, strict=True) if kept)
    found = Problem(observations, tuple(p for p, kept in zip(problem.chosen, columns, strict=True) if kept))
    found.__dict__["first"] = planned[rows], slopes[rows][:, columns]
    return found


def without(problem: Problem, refused: Sequence[Observation]) -> Problem:
    """The problem less some observations, and less the parameters that no other measures."""
    planned, slopes = problem.first
    rows = np.array([o not in refused for o in problem.observations], bool)
    return _reduced(problem, planned, slopes, rows, measuring(problem, slopes)[rows].any(axis=0))


def odd_ones(problem: Problem) -> tuple[Odd, ...]:
    """Figures beyond what parameters within their reach explain."""
    planned, slopes = problem.first
    spread = np.sqrt(problem.noise**2 + np.einsum("ij,jk,ik->i", slopes, covariance(problem.chosen), slopes))
    reach = constant("reach", "deviations") * spread
    found = []
    for o, value, explained in zip(problem.observations, planned, reach, strict=True):
        if abs(o.measured - value) > explained or _too_quick(o, value):
            found.append(Odd(observation=o, planned=float(value), explained=float(explained)))
    return tuple(found)


def _too_quick(observation: Observation, planned: float) -> bool:
    quick = math.log(constant("reach", "least_ratio"))
    return observation.quantity is Quantity.STEP and observation.measured - planned < quick


def solve(problem: Problem) -> Solution:
    """Gauss-Newton from the shipped values; derivatives are taken there, and once more near the minimum."""
    values, (planned, slopes) = problem.start, problem.first
    deviations = np.array([p.deviation for p in problem.chosen])
    for _ in range(REFRESHES):
        for _ in range(ITERATIONS):
            moved, doubt = _minimum(problem, slopes, problem.measured - planned + slopes @ values)
            settled = bool(np.all(np.abs(moved - values) < SETTLED * deviations))
            values, planned = moved, problem.planned(moved)
            if settled:
                break
        slopes = problem.derivatives(values, planned)
    return Solution(problem=problem, values=values, covariance=doubt, planned=planned, derivatives=slopes)
