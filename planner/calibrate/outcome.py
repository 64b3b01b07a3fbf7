"""Rows fitted: the profile, how far each row was off before and after, and what was refused and why."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from ..errors import InputError, listed
from ..staleness import today
from .cases import Case, Quantity
from .fit import Observation, Odd, Solution, observations_of, odd_ones, solve, touching, without
from .parameters import at, parameters
from .profile import MOST_ROWS, Agreement, Profile, Source
from .ranges import fitted

LEAST_FOR_LEAVING_OUT = 3  # rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A row, or one figure of it, that was not fitted."""

    label: str
    source: str
    what: str  # the figure; "" is the whole row
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One figure of a row: relative errors of what is planned, planned / measured - 1."""

    case: Case
    quantity: Quantity
    measured: float  # on the scale that is fitted
    before: float
    after: float
    left_out: float | None  # planned from the other rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the rows."""

    profile: Profile
    cases: tuple[Case, ...]
    judged: tuple[Judged, ...]
    refused: tuple[Refused, ...]
    unmoved: tuple[str, ...]  # labels of parameters that no row measures


def outcome_of(cases: Sequence[Case], refused: Sequence[Refused] = ()) -> Outcome:
    """Fit rows of one GPU type.

    Args:
        cases: the rows.
        refused: others that could not be read as rows, with their reasons.

    Raises:
        InputError: no figure is left to fit, or there are too many rows.
    """
    if len(cases) > MOST_ROWS:
        raise InputError(f"calibrate: {len(cases):,} rows; allowed are {MOST_ROWS:,}; give those of one platform")
    problem = touching(observations_of(cases))
    odd = odd_ones(problem)
    dropped = _dropped(problem.observations, odd)
    refusals = (*refused, *(_refusal(o) for o in odd), *_with_them(dropped, odd))
    left = without(problem, dropped)
    if not left.observations or not left.chosen:
        reasons = listed(tuple(f"{r.label}: {r.reason}" for r in refusals)) if refusals else "no rows were given"
        raise InputError(f"calibrate: nothing is left to fit: {reasons}")
    used = tuple({id(o.case): o.case for o in left.observations}.values())
    solution = solve(left)
    judged = _judged(solution, used)
    return Outcome(
        profile=_profile(solution, used, judged, odd),
        cases=used,
        judged=judged,
        refused=refusals,
        unmoved=tuple(p.label for p in parameters() if p not in left.chosen),
    )


def _profile(solution: Solution, used: Sequence[Case], judged: Sequence[Judged], odd: Sequence[Odd]) -> Profile:
    """Ranges hold what was measured and believed: an odd figure raises no bound."""
    return Profile(
        gpu=used[0].gpu,
        trainplan=importlib.metadata.version("trainplan"),
        date=today().isoformat(),
        figures=fitted(solution, [_believed(case, odd) for case in used]),
        rows=tuple(Source(label=c.label, file=c.source, measured=_measured(c, judged)) for c in used),
        errors=_errors(judged),
    )


def _measured(case: Case, judged: Sequence[Judged]) -> str:
    return ", ".join(j.quantity.label for j in judged if j.case is case)


FIELDS = {
    Quantity.HELD: "reserved_bytes",
    Quantity.RESERVED: "reserved_bytes",
    Quantity.FIXED: "device_bytes",
    Quantity.DEVICE: "device_bytes",
}


def _believed(case: Case, odd: Sequence[Odd]) -> Case:
    """A row less its odd figures of memory."""
    taken = {
        FIELDS[o.observation.quantity]: None
        for o in odd
        if o.observation.case is case and o.observation.quantity in FIELDS
    }
    return replace(case, measured=replace(case.measured, **taken)) if taken else case


# ------------------------------------------------------------------------------------------------------------- refusals


def _dropped(observations: Sequence[Observation], odd: Sequence[Odd]) -> tuple[Observation, ...]:
    """Odd figures; all of a row whose tensors are not those that were planned: it ran under other settings."""
    foreign = [o.observation.case for o in odd if o.observation.quantity is Quantity.ALLOCATED]
    single = [o.observation for o in odd]
    return tuple(o for o in observations if o in single or any(o.case is case for case in foreign))


def _with_them(dropped: Sequence[Observation], odd: Sequence[Odd]) -> list[Refused]:
    single = [o.observation for o in odd]
    why = "its allocated memory is not what was planned, so that its other figures are of another job"
    return [_refused(o, why) for o in dropped if o not in single]


def _refused(o: Observation, reason: str) -> Refused:
    return Refused(label=o.case.label, source=o.case.source, what=o.quantity.label, reason=reason)


EXPLAINED = {
    Quantity.STEP: "rates of kernels and links",
    Quantity.ALLOCATED: "live tensors beyond those counted",
    Quantity.HELD: "fragmentation",
    Quantity.RESERVED: "live tensors and fragmentation",
    Quantity.FIXED: "context and communicators",
    Quantity.DEVICE: "live tensors, fragmentation, context and communicators",
}
LIKELIER = {
    Quantity.STEP: "a wrong GPU, a data stall or other settings are likelier",
    Quantity.ALLOCATED: "another model, batch, sequence length or other settings are likelier",
    Quantity.HELD: "another allocator setting (expandable_segments) is likelier",
    Quantity.RESERVED: "other settings, of the job or of the allocator, are likelier",
    Quantity.FIXED: "another process on the GPU is likelier",
    Quantity.DEVICE: "another process on the GPU or other settings are likelier",
}


def _refusal(odd: Odd) -> Refused:
    o = odd.observation
    quantity, apart = o.quantity, o.measured - odd.planned
    if quantity is Quantity.FIXED:
        how = f"is {o.measured:.1f} GiB, planned {odd.planned:.1f}"
        reach = f"{max(0.0, odd.planned - odd.explained):.1f} to {odd.planned + odd.explained:.1f} GiB"
    else:
        how = f"is {math.exp(apart):.2f}x of what is planned"
        reach = f"{math.exp(-odd.explained):.2f}x to {math.exp(odd.explained):.2f}x"
    reason = (
        f"{quantity.label} {how}: outside what {EXPLAINED[quantity]} explain ({reach}); {LIKELIER[quantity]}; "
        "correct the row or leave it out"
    )
    return _refused(o, reason)


# ------------------------------------------------------------------------------------------------------------- errors


def _judged(solution: Solution, used: Sequence[Case]) -> tuple[Judged, ...]:
    problem = solution.problem
    before = problem.first[0]
    enough = len(used) >= LEAST_FOR_LEAVING_OUT
    left_out = {id(case): _left_out(solution, case) for case in used} if enough else {}
    found = []
    for o, old, new in zip(problem.observations, before, solution.planned, strict=True):
        other = left_out[id(o.case)][o.quantity] if enough else None
        found.append(
            Judged(
                case=o.case,
                quantity=o.quantity,
                measured=o.measured,
                before=error(o.quantity, old, o.measured),
                after=error(o.quantity, new, o.measured),
                left_out=None if other is None else error(o.quantity, other, o.measured),
            )
        )
    return tuple(found)


def _left_out(solution: Solution, case: Case) -> dict[Quantity, float]:
    """What is planned for a row from the other rows."""
    return dict(case.planned(at(solution.problem.chosen, solution.without(case))))


def error(quantity: Quantity, planned: float, measured: float) -> float:
    """planned / measured - 1; of logarithms their difference says it.

    >>> round(error(Quantity.FIXED, 1.1, 1.0), 3), round(error(Quantity.STEP, math.log(12), math.log(10)), 3)
    (0.1, 0.2)
    """
    if quantity is Quantity.FIXED:
        return float(planned / measured - 1) if measured > 0 else math.inf
    return math.exp(planned - measured) - 1


def _errors(judged: Sequence[Judged]) -> tuple[Agreement, ...]:
    found = []
    for quantity in Quantity:
        rows = [j for j in judged if j.quantity is quantity and math.isfinite(j.before)]
        if rows:
            others = [abs(j.left_out) for j in rows if j.left_out is not None]
            found.append(
                Agreement(
                    quantity=quantity.label,
                    rows=len(rows),
                    before_percent=100 * fmean(abs(j.before) for j in rows),
                    after_percent=100 * fmean(abs(j.after) for j in rows),
                    left_out_percent=100 * fmean(others) if others else None,
                )
            )
    return tuple(found)
