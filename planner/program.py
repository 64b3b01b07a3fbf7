"""The integer program: which column, how many layers checkpointed, how many sub-groups on the host.

    Sets
        c   columns: offer x node count x family of stacks x micro-batch
        r   memory rows of a column: GPU phases, host RAM, NVMe (GiB)
        p   parts of a column's step: forward, backward, once per step
        q   lower bounds of a part's seconds: its compute, its compute plus exposed traffic, ...
    Parameters (from the ledger; linear in the two integers)
        fixed, per_layer, per_group of every row and bound; limit of every row; times of every part
        usd_fixed, usd_per_s: the line that touches the bill at the column's quickest step and is below it elsewhere
    Variables
        choose[c] in {0, 1};  layers[c] in Z, low[c] choose[c] <= layers[c] <= high[c] choose[c];
        groups[c] in Z, 0 or 1..G[c];  part_s[c, p] >= 0
    Objective
        dollars = sum over c of usd_fixed[c] choose[c] + usd_per_s[c] sum over p of times[c, p] part_s[c, p], where
                  dollars are a line in hours; else billed[c] >= that, billed[c] >= least_usd[c] choose[c];
        ties: seconds, then GPUs, then the simpler stack
    Constraints
        one_plan                 sum over c of choose[c] = 1
        memory[c, r]             fixed choose + per_layer layers + per_group groups <= limit choose
        part[c, p, q]            part_s >= fixed choose + per_layer layers + per_group groups
        longest[c]               run_s <= longest_s[c] choose[c], where a machine is let for so long only
        budget, deadline         on the sums
        cut[...]                 points the exact ledger has refuted

A row may be a relaxation: a memory row is never above the exact ledger; where layers differ, seconds are a line
between k = 1 and k = L. The solver proposes, the ledger disposes: refuted points are cut off and the program is solved
again, so that the answer is optimal for the exact ledger. A bill in steps (whole days, a commitment) never falls with
hours, so a column costs least at its quickest point that is not cut off: least_usd is the bill of that point. Bytes
are scaled to GiB before the solver sees them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any

from .errors import SolverError


@dataclass(frozen=True, slots=True)
class Line:
    """fixed + per_layer k + per_group g."""

    fixed: float
    per_layer: float = 0.0
    per_group: float = 0.0

    def at(self, layers: int, groups: int) -> float:
        """Value for k and g."""
        return self.fixed + self.per_layer * layers + self.per_group * groups

    def least(self, box: Box) -> float:
        """Smallest value over the box."""
        return (
            self.fixed
            + min(self.per_layer * box.low_layers, self.per_layer * box.high_layers)
            + min(self.per_group * box.low_groups, self.per_group * box.high_groups)
        )


@dataclass(frozen=True, slots=True)
class Box:
    """Ranges of the two integers; a range of one value is no choice."""

    low_layers: int = 0
    high_layers: int = 0
    low_groups: int = 0
    high_groups: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A memory constraint in GiB."""

    name: str
    line: Line
    limit: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the step: how often it happens, and lower bounds of its seconds."""

    times: float
    bounds: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True, eq=False)  # compared by identity: caches are keyed by column
class Column:
    """One priced way to run the job; `key` leads back to the candidate."""

    key: int
    gpus: int
    simplicity: int
    usd_per_s: float  # of step time over the whole run: price x nodes x steps x overheads / 3600
    run_s_per_s: float  # seconds of the run per second of step time
    box: Box
    rows: tuple[Row, ...]
    parts: tuple[Part, ...]
    usd_fixed: float = 0.0  # whatever a step takes: start-up; below 0 where the bill bends upwards
    run_s_fixed: float = 0.0
    usd_of_run_s: Callable[[float], float] | None = None  # a bill that is no line in seconds; None: the line
    longest_s: float = math.inf  # of a run on this machine

    def usd(self, step_s: float) -> float:
        """Dollars of the run for a step of so many seconds."""
        if self.usd_of_run_s is not None:
            return self.usd_of_run_s(self.run_s(step_s))
        return self.usd_fixed + self.usd_per_s * step_s

    def run_s(self, step_s: float) -> float:
        """Seconds of the whole run for a step of so many seconds."""
        return self.run_s_fixed + self.run_s_per_s * step_s

    def quickest_but(self, refuted: Collection[tuple[int, int]]) -> float:
        """Seconds of the quickest point that the rows admit and that is not refuted; infinite where there is none."""
        if not refuted:
            return math.inf if self.quick is None else self.quick[1]
        layers = range(self.box.low_layers, self.box.high_layers + 1)
        points = (
            (k, g)
            for g in range(self.box.low_groups, self.box.high_groups + 1)
            if (least := self._least_layers(g)) is not None
            for k in layers
            if k >= least and (k, g) not in refuted
        )
        return min((self.step_s(*point) for point in points), default=math.inf)

    @cached_property
    def quick(self) -> tuple[tuple[int, int], float] | None:
        """The point with the fewest seconds that the rows admit, and those seconds; None where they admit none.

        For each g it is the fewest layers that fit: recomputing costs time, so more layers never save any.
        """
        points = [
            (layers, g)
            for g in range(self.box.low_groups, self.box.high_groups + 1)
            if (layers := self._least_layers(g)) is not None
        ]
        timed = [(self.step_s(*point), point) for point in points]
        return (min(timed)[1], min(timed)[0]) if timed else None

    def _least_layers(self, groups: int) -> int | None:
        low, high = self.box.low_layers, self.box.high_layers
        for row in self.rows:
            room = row.limit - row.line.fixed - row.line.per_group * groups
            slope = row.line.per_layer
            if slope < 0:
                low = max(low, math.ceil(room / slope - TOLERANCE))
            elif slope > 0:
                high = min(high, math.floor(room / slope + TOLERANCE))
            elif room < 0:
                return None
        return low if low <= high else None

    def least_step_s(self) -> float:
        """Lower bound of the step's seconds over the box, memory ignored."""
        return sum(part.times * max(line.least(self.box) for line in part.bounds) for part in self.parts)

    def step_s(self, layers: int, groups: int) -> float:
        """Lower bound of the step's seconds at one point."""
        return sum(part.times * max(line.at(layers, groups) for line in part.bounds) for part in self.parts)


TOLERANCE = 1e-6  # GiB, layers and relative dollars; HiGHS works to 1e-7


class Objective(Enum):
    """What is made smallest."""

    COST = "cost"
    TIME = "time"
    GPUS = "gpus"


class Status(Enum):
    """What the solver can say; its own words never leave this module."""

    OPTIMAL = "optimal"
    INFEASIBLE = "infeasible"
    TIME_LIMIT = "time_limit"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Constraints over all columns; infinite where the user gave none."""

    budget_usd: float = math.inf
    deadline_s: float = math.inf
    max_gpus: int = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How the answer was found and why to believe it."""

    solver: str
    version: str
    status: Status
    objective: Objective
    value: float
    bound: float
    columns: int  # considered before pruning
    in_program: int
    cuts: int
    seconds: float

    @property
    def gap(self) -> float:
        """Relative distance of value and bound."""
        return abs(self.value - self.bound) / max(abs(self.value), 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A column with its integers."""

    key: int
    layers: int
    groups: int
    certificate: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """The elastic program's answer: what is short, by how much of it, in the unit of the constraint."""

    key: int
    constraint: str
    short: float
    limit: float


TIE = 1e-6  # relative; answers this close cost the same
MAX_CUTS = 200
SECONDS = 20.0

Dispose = Callable[[int, int, int], bool]  # key, layers, groups -> whether the exact ledger agrees


@dataclass(frozen=True, slots=True)
class Cut:
    """A point the exact ledger has refuted."""

    key: int
    layers: int
    groups: int


def solve(
    columns: Sequence[Column],
    limits: Limits,
    dispose: Dispose,
    objective: Objective = Objective.COST,
    *,
    considered: int = 0,
) -> Choice | None:
    """The best point that the exact ledger confirms; None where there is none.

    Args:
        columns: the program's columns; dominated ones may be left out.
        limits: budget (USD), deadline (s), GPUs.
        dispose: checks one point exactly.
        objective: what is made smallest.
        considered: how many columns there were before dominated ones were left out.

    Raises:
        SolverError: HiGHS failed or ran out of time.
    """
    began = time.perf_counter()
    cuts: list[Cut] = []
    useful = [c for c in columns if c.gpus <= limits.max_gpus]
    while len(cuts) <= MAX_CUTS:
        answer = _solve_once(useful, limits, objective, cuts)
        if answer is None:
            return None
        column, layers, groups, certificate = answer
        if dispose(column.key, layers, groups):
            done = replace(
                certificate,
                columns=considered or len(columns),
                in_program=len(useful),
                cuts=len(cuts),
                seconds=time.perf_counter() - began,
            )
            return Choice(key=column.key, layers=layers, groups=groups, certificate=done)
        cuts.append(Cut(column.key, layers, groups))
    raise SolverError(
        f"program: {MAX_CUTS} proposals were refuted by the exact ledger; restrict the request (--gpus, --require)"
    )


@dataclass(slots=True)
class _Built:
    """A PuLP problem and its variables, by column."""

    problem: Any
    choose: dict[int, Any] = field(default_factory=dict)
    layers: dict[int, Any] = field(default_factory=dict)
    groups: dict[int, Any] = field(default_factory=dict)
    cost: Any = None
    run_s: Any = None


def _solve_once(
    columns: Sequence[Column], limits: Limits, objective: Objective, cuts: Sequence[Cut]
) -> tuple[Column, int, int, Certificate] | None:
    """Solve, then break ties: seconds, GPUs, simplicity."""
    if not columns:
        return None
    built = _build(columns, limits, cuts)
    goals = _goals(built, columns, objective)
    first: Certificate | None = None
    for index, (name, goal) in enumerate(goals):
        built.problem.setObjective(goal)
        certificate = _run(built.problem, objective)
        if certificate.status is Status.INFEASIBLE:
            return None
        first = first or certificate
        if index == 0 and not _tied(columns, built, objective, certificate.value):
            break
        built.problem += goal <= certificate.value + TIE * max(abs(certificate.value), 1.0), f"keep_{name}"
    assert first is not None
    chosen = next(c for c in columns if built.choose[c.key].value() > 0.5)
    return (
        chosen,
        _integer(built.layers.get(chosen.key), chosen.box.low_layers),
        _integer(built.groups.get(chosen.key), chosen.box.low_groups),
        first,
    )


def _integer(variable: Any, otherwise: int) -> int:
    return otherwise if variable is None else round(variable.value())


def _goals(built: _Built, columns: Sequence[Column], objective: Objective) -> list[tuple[str, Any]]:
    import pulp

    gpus = pulp.lpSum(c.gpus * built.choose[c.key] for c in columns)
    simple = pulp.lpSum(c.simplicity * built.choose[c.key] for c in columns)
    goals = {"cost": built.cost, "time": built.run_s, "gpus": gpus, "simplicity": simple}
    first = objective.value
    return [(first, goals[first]), *((name, goal) for name, goal in goals.items() if name != first)]


def _tied(columns: Sequence[Column], built: _Built, objective: Objective, value: float) -> bool:
    """Whether another column could be as good: without one there is no tie to break."""
    chosen = next(c for c in columns if built.choose[c.key].value() > 0.5)
    if objective is Objective.GPUS:
        return sum(1 for c in columns if c.gpus <= value + TIE) > 1

    if objective is Objective.COST and chosen.usd_of_run_s is not None:
        return True  # slower points of its own may cost the same

    def least(c: Column, step_s: float) -> float:
        return c.usd(step_s) if objective is Objective.COST else c.run_s(step_s)

    limit = value * (1 + TIE)
    return any(c is not chosen and c.quick is not None and least(c, c.quick[1]) <= limit for c in columns)


def _build(columns: Sequence[Column], limits: Limits, cuts: Sequence[Cut]) -> _Built:
    import pulp

    built = _Built(pulp.LpProblem("plan", pulp.LpMinimize))
    problem = built.problem
    refuted: dict[int, set[tuple[int, int]]] = {}
    for cut in cuts:
        refuted.setdefault(cut.key, set()).add((cut.layers, cut.groups))
    costs, seconds = [], []
    for c in columns:
        step = _add_column(built, c)
        costs.append(_dollars(built, c, step, c.quickest_but(refuted.get(c.key, ()))))
        took = c.run_s_per_s * step + c.run_s_fixed * built.choose[c.key]
        seconds.append(took)
        if math.isfinite(c.longest_s):
            problem += took <= c.longest_s * built.choose[c.key], f"longest_{c.key}"
    problem += pulp.lpSum(built.choose.values()) == 1, "one_plan"
    built.cost, built.run_s = pulp.lpSum(costs), pulp.lpSum(seconds)
    if math.isfinite(limits.budget_usd):
        problem += built.cost <= limits.budget_usd, "budget"
    if math.isfinite(limits.deadline_s):
        problem += built.run_s <= limits.deadline_s, "deadline"
    by_key = {c.key: c for c in columns}
    for index, cut in enumerate(cuts):
        if cut.key in by_key:
            _add_cut(built, by_key[cut.key], cut, index)
    return built


def _dollars(built: _Built, c: Column, step: Any, quickest_s: float) -> Any:
    """Dollars of a column: a line in its step's seconds, or where it is billed in steps a variable above two bounds."""
    line = c.usd_per_s * step + c.usd_fixed * built.choose[c.key]
    if c.usd_of_run_s is None:
        return line
    billed = built.problem.add_variable(f"billed_{c.key}", lowBound=0)
    built.problem += billed >= line, f"billed_{c.key}_line"
    if math.isfinite(quickest_s):
        built.problem += billed >= c.usd(quickest_s) * built.choose[c.key], f"billed_{c.key}_least"
    return billed


def _add_column(built: _Built, c: Column) -> Any:
    """Variables and constraints of one column; returns its step's seconds."""
    problem, key, box = built.problem, c.key, c.box
    chosen = built.choose[key] = problem.add_variable(f"choose_{key}", cat="Binary")
    layers = _add_integer(built.layers, problem, f"layers_{key}", key, chosen, box.low_layers, box.high_layers)
    groups = _add_integer(built.groups, problem, f"groups_{key}", key, chosen, box.low_groups, box.high_groups)

    def value(line: Line) -> Any:
        return line.fixed * chosen + line.per_layer * layers + line.per_group * groups

    for row in c.rows:
        if row.line.fixed + _most(row.line, box) > row.limit:  # rows that can never bind are left out
            problem += value(row.line) <= row.limit * chosen, f"memory_{key}_{row.name}"
    step = 0
    for index, part in enumerate(c.parts):
        seconds = problem.add_variable(f"part_s_{key}_{index}", lowBound=0)
        for number, line in enumerate(part.bounds):
            problem += seconds >= value(line), f"part_{key}_{index}_{number}"
        step = step + part.times * seconds
    return step


def _most(line: Line, box: Box) -> float:
    return max(line.per_layer * box.low_layers, line.per_layer * box.high_layers) + max(
        line.per_group * box.low_groups, line.per_group * box.high_groups
    )


def _add_integer(where: dict[int, Any], problem: Any, name: str, key: int, chosen: Any, low: int, high: int) -> Any:
    """An integer between low and high where the column is chosen, 0 elsewhere; no variable where there is no choice."""
    if low == high:
        return low * chosen
    variable = where[key] = problem.add_variable(name, lowBound=0, upBound=high, cat="Integer")
    problem += variable <= high * chosen, f"{name}_high"
    problem += variable >= low * chosen, f"{name}_low"
    return variable


def _add_cut(built: _Built, c: Column, cut: Cut, index: int) -> None:
    """Forbid one refuted point: layers and groups may not both be what they were."""
    problem, key = built.problem, c.key
    literals: list[Any] = []
    for variables, value, low, high in (
        (built.layers, cut.layers, c.box.low_layers, c.box.high_layers),
        (built.groups, cut.groups, c.box.low_groups, c.box.high_groups),
    ):
        if key not in variables:
            continue
        for name, far in (("below", value - 1), ("above", value + 1)):
            if low <= far <= high:
                literal = problem.add_variable(f"cut_{index}_{name}_{len(literals)}", cat="Binary")
                if name == "below":
                    problem += variables[key] <= far + (high - far) * (1 - literal)
                else:
                    problem += variables[key] >= far * literal
                literals.append(literal)
    problem += sum(literals) >= built.choose[key], f"cut_{index}"


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """HiGHS prints a banner from C even when told not to; nothing of it may reach the user's stdout."""
    try:
        saved, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    except OSError:
        yield
        return
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(null)


def _run(problem: Any, objective: Objective) -> Certificate:
    """Solve with HiGHS and translate its words.

    Raises:
        SolverError: neither optimal nor infeasible.
    """
    import highspy
    import pulp

    began = time.perf_counter()
    with _quiet_stdout():
        problem.solve(pulp.HiGHS(msg=False, timeLimit=SECONDS, gapRel=0.0))
    status = _status(problem.status)
    if status not in (Status.OPTIMAL, Status.INFEASIBLE):
        raise SolverError(
            f"program: HiGHS stopped with status {status.value} after {SECONDS:g} s; "
            f"restrict the request (--gpus, --require)"
        )
    value = pulp.value(problem.objective) if status is Status.OPTIMAL else math.nan
    return Certificate(
        solver="HiGHS",
        version=highspy.Highs().version(),
        status=status,
        objective=objective,
        value=value or 0.0,
        bound=_bound(problem, value or 0.0),
        columns=0,
        in_program=0,
        cuts=0,
        seconds=time.perf_counter() - began,
    )


def _bound(problem: Any, otherwise: float) -> float:
    """HiGHS's own dual bound where it gives one."""
    try:
        bound = float(problem.solverModel.getInfo().mip_dual_bound)
    except AttributeError:
        return math.nan
    return bound if math.isfinite(bound) else otherwise


def _status(code: int) -> Status:
    import pulp

    known = {
        pulp.LpStatusOptimal: Status.OPTIMAL,
        pulp.LpStatusInfeasible: Status.INFEASIBLE,
        pulp.LpStatusNotSolved: Status.TIME_LIMIT,
    }
    return known.get(code, Status.UNKNOWN)


def shortage(columns: Sequence[Column], limits: Limits) -> Shortage | None:
    """The elastic program: every memory row, the budget and the deadline may be exceeded, at a price.

    The price is per share of the limit. Returns the constraint that is exceeded most in the cheapest such answer, or
    None where there are no columns, or nothing that could be exceeded.

    Raises:
        SolverError: HiGHS failed or ran out of time.
    """
    import pulp

    if not columns:
        return None
    built = _Built(pulp.LpProblem("elastic", pulp.LpMinimize))
    slacks: list[tuple[int | None, str, float, Any]] = []
    costs, seconds = [], []
    for c in columns:
        step = _add_column(built, replace(c, rows=()))
        costs.append(_dollars(built, c, step, c.least_step_s()))
        took = c.run_s_per_s * step + c.run_s_fixed * built.choose[c.key]
        seconds.append(took)
        _relax_rows(built, c, slacks)
        if math.isfinite(c.longest_s):
            slack = built.problem.add_variable(f"slack_{c.key}_longest", lowBound=0)
            built.problem += took <= c.longest_s * (built.choose[c.key] + slack), f"longest_{c.key}"
            slacks.append((c.key, "maximum_hours", c.longest_s, slack))
    built.problem += pulp.lpSum(built.choose.values()) == 1, "one_plan"
    for name, limit, terms in (("budget", limits.budget_usd, costs), ("deadline", limits.deadline_s, seconds)):
        if math.isfinite(limit):
            slack = built.problem.add_variable(f"slack_{name}", lowBound=0)
            built.problem += pulp.lpSum(terms) <= limit * (1 + slack), name
            slacks.append((None, name, limit, slack))
    if not slacks:
        return None
    built.problem.setObjective(pulp.lpSum(slack for *_, slack in slacks))
    _run(built.problem, Objective.COST)
    chosen = next(c.key for c in columns if built.choose[c.key].value() > 0.5)
    _, name, limit, slack = max(slacks, key=lambda s: (s[0] in (None, chosen)) * (s[3].value() or 0.0))
    return Shortage(key=chosen, constraint=name, short=(slack.value() or 0.0) * limit, limit=limit)


def _relax_rows(built: _Built, c: Column, slacks: list[tuple[int | None, str, float, Any]]) -> None:
    """Memory rows of one column with a slack measured in shares of the limit."""
    chosen, problem = built.choose[c.key], built.problem
    layers = built.layers.get(c.key, c.box.low_layers * chosen)
    groups = built.groups.get(c.key, c.box.low_groups * chosen)
    for row in c.rows:
        slack = problem.add_variable(f"slack_{c.key}_{row.name}", lowBound=0)
        limit = max(row.limit, 1.0)
        needs = row.line.fixed * chosen + row.line.per_layer * layers + row.line.per_group * groups
        problem += needs <= row.limit * chosen + limit * slack, f"memory_{c.key}_{row.name}"
        slacks.append((c.key, row.name, limit, slack))
