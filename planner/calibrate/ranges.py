"""From the minimum to figures with ranges: how far the rows let an upper bound come down.

    rates           point x exp(+- z s), s what doubt the rows left
    live excess     point; the upper end is never below the largest of any row, and each line keeps its own margin
    overheads       point, the shipped margins / sqrt(n): with one row they are kept whole

n rows measured the figure itself; where none did, no upper end comes down. Then every upper end is raised until each
measured allocated, reserved and device memory lies within its planned range. What a run without an out-of-memory cannot
show (`needed`) stays as shipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..calibration import Calibration, Range
from ..memory import FRAGMENTATION, Allocator
from ..overheads import overhead
from ..time.spread import Z
from ..units import GIB
from .cases import Case, Quantity
from .fit import Solution, measuring
from .parameters import LIVE, OVERHEADS, Fitted, Parameter, at, calibration_of

RAISES = 4  # passes until all rows are held; each raises one figure after another
DIRECT = {  # the figure that measures a parameter alone
    "context": Quantity.FIXED,
    "collectives": Quantity.FIXED,
    "fragmentation": Quantity.HELD,
    "fragmentation_native": Quantity.HELD,
    "fragmentation_varying": Quantity.HELD,
    LIVE: Quantity.ALLOCATED,
}


def fitted(solution: Solution, cases: Sequence[Case]) -> tuple[Fitted, ...]:
    """Every parameter that some row measures, with its range."""
    ranges = {p.name: _range(p, index, solution, cases) for index, p in enumerate(solution.problem.chosen)}
    held = raised(ranges, cases)
    return tuple(
        Fitted(
            name=p.name,
            value=held[p.name],
            rows=_rows(solution, index),
            doubt_left=min(1.0, math.sqrt(solution.covariance[index, index]) / p.deviation),
        )
        for index, p in enumerate(solution.problem.chosen)
    )


def _rows(solution: Solution, index: int, quantity: Quantity | None = None) -> int:
    """Rows that measure the parameter, or do so by a figure of one kind."""
    measured = measuring(solution.problem, solution.problem.first[1])[:, index]
    pairs = zip(solution.problem.observations, measured, strict=True)
    return len({id(o.case) for o, counts in pairs if counts and quantity in (None, o.quantity)})


def _range(parameter: Parameter, index: int, solution: Solution, cases: Sequence[Case]) -> Range:
    value = float(solution.values[index])
    if parameter.name == LIVE:
        each = [x for case in cases if (x := excess(case, parameter)) is not None]
        return Range(min([value, *each]), value, max([value, *(each or [parameter.start])]))
    if parameter.name in OVERHEADS:
        shipped = overhead(parameter.name)
        rows = _rows(solution, index, DIRECT[parameter.name])
        share = 1 / math.sqrt(max(1, rows))
        low = max(parameter.floor, value - share * (shipped.point - shipped.low))
        upper = value + share * (shipped.upper - shipped.point)
        return Range(low, value, upper if rows else max(upper, shipped.upper))
    doubt = Z * math.sqrt(solution.covariance[index, index])
    return Range(*(parameter.shown(x) for x in (value - doubt, value, value + doubt)))


def excess(case: Case, live: Parameter) -> float | None:
    """The live excess of one row alone, within reach; None where allocated memory was not measured or is all exact."""
    measured = case.measured.allocated_bytes
    if not measured:
        return None
    counted, larger = (case.memory(at((live,), (x,))).allocated_bytes for x in (live.start, live.deviation))
    if larger == counted:
        return None
    return min(live.most, max(live.least, (measured - counted) / (larger - counted) * live.deviation))


def raised(ranges: Mapping[str, Range], cases: Sequence[Case]) -> dict[str, Range]:
    """Upper ends so high that every row's memory lies within its range."""
    found = dict(ranges)
    for _ in range(RAISES):
        short = False
        for case in cases:
            for quantity, share in _missing(case, calibration_of(found)).items():
                name = _raising(quantity, case)
                if name in found:
                    found[name] = _higher(found[name], share)
                    short = True
        if not short:
            break
    return found


def _missing(case: Case, calibration: Calibration) -> dict[Quantity, float]:
    """By how much a row's memory is above its range: a share of the range's upper end, or GiB of device memory."""
    if not any(case.measured.memory):
        return {}
    memory, found = case.memory(calibration), {}
    allocated, reserved, device = case.measured.memory
    if allocated and allocated > memory.allocated.upper:
        found[Quantity.ALLOCATED] = allocated / memory.allocated.upper - 1
    if reserved and reserved > memory.reserved.upper:
        found[Quantity.HELD] = (reserved - memory.reserved.upper) / memory.allocated.upper
    fixed = device - reserved if device and reserved else 0
    if device and device > memory.device.upper:
        unit = GIB if _raising(Quantity.FIXED, case) == "context" else memory.allocated.upper
        found[Quantity.FIXED] = (device - memory.device.upper) / unit
    elif fixed > memory.device.upper - memory.reserved.upper and memory.device.upper < memory.capacity_bytes:
        found[Quantity.FIXED] = (fixed - memory.device.upper + memory.reserved.upper) / GIB
    return found


def _raising(quantity: Quantity, case: Case) -> str:
    """The figure whose upper end answers for a kind of memory.

    Device memory alone does not say what it consists of. Where segments cannot expand it is cache that varies most;
    where they can, as in every plan, the context is raised, which decides what fits.
    """
    if quantity is Quantity.ALLOCATED:
        return LIVE
    whole = case.measured.reserved_bytes is None and case.allocator is not Allocator.EXPANDABLE
    return "context" if quantity is Quantity.FIXED and not whole else FRAGMENTATION[case.allocator]


def _higher(value: Range, by: float) -> Range:
    return Range(value.low, value.point, value.upper + by * (1 + 1e-9))
