"""How well predictions agree with measurements: errors, bands, decisions.

    error = predicted / measured - 1;  MAPE = mean |error|;  bias = mean error

A row that cannot be expressed is counted and named with its reason; a row of a grade that is not asked for is left out
and counted.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..ledger import Device, Entry, Ledger
from ..memory import Band, GpuMemory
from ..units import TERA
from .runs import TOLERANCE_PERCENT, RunRow
from .table import Measurement, MemoryKind, Table, Unsupported

GRADES = ("A", "B", "M")
WORST = 10
LARGEST_LINES = 4


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second and GPU, with the 80 % band."""

    low: float
    point: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuHours:
    """Of a whole run, with the 80 % band of its steps."""

    low: float
    point: float
    upper: float
    goodput: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What we would have said of one row."""

    memory: GpuMemory
    ledger: Ledger
    fits: bool | None  # None: the row leaves open what decides it
    rate: Rate | None  # None: time is not modelled for this configuration
    flops_per_token: float = 0.0  # by which the row's TFLOPs are tokens; 0: by no formula that it states
    run: RunRow | None = None  # of a whole run: how it was taken to be laid out
    hours: GpuHours | None = None  # of it; None where time is not modelled


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One row's prediction beside its measurement, in one unit: bytes, tokens per second and GPU, or GPU-hours."""

    row: Measurement
    predicted: float
    measured: float
    low: float
    upper: float
    lines: tuple[Entry, ...] = ()  # the largest of the ledger
    run: RunRow | None = None
    goodput: float = 0.0  # of a whole run: the share of its hours that its steps take

    @property
    def error(self) -> float:
        """predicted / measured - 1."""
        return self.predicted / self.measured - 1

    @property
    def within(self) -> bool:
        """Whether the measurement lies in the predicted range."""
        return self.low <= self.measured <= self.upper


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Agreement over some rows."""

    scored: tuple[Scored, ...]
    unsupported: tuple[tuple[Measurement, str], ...] = ()

    @property
    def mape_percent(self) -> float | None:
        """Mean absolute error; None without rows."""
        return 100 * statistics.fmean(abs(s.error) for s in self.scored) if self.scored else None

    @property
    def median_percent(self) -> float | None:
        """Median absolute error."""
        return 100 * statistics.median(abs(s.error) for s in self.scored) if self.scored else None

    @property
    def bias_percent(self) -> float | None:
        """Mean error; positive: predicted too much."""
        return 100 * statistics.fmean(s.error for s in self.scored) if self.scored else None

    @property
    def within_band_percent(self) -> float | None:
        """Share of rows inside their printed range."""
        return 100 * statistics.fmean(s.within for s in self.scored) if self.scored else None

    @property
    def training_alone(self) -> Errors:
        """Of whole runs, those whose hours are said to contain nothing else."""
        return Errors(scored=tuple(s for s in self.scored if s.run and not s.run.caveat))

    @property
    def within_tolerance(self) -> int:
        """Rows that are off by no more than a run may be."""
        return sum(100 * abs(s.error) <= TOLERANCE_PERCENT for s in self.scored)

    @property
    def worst(self) -> tuple[Scored, ...]:
        """The rows with the largest errors."""
        return tuple(sorted(self.scored, key=lambda s: -abs(s.error))[:WORST])

    def by(self, column: Callable[[Measurement], str]) -> Mapping[str, Errors]:
        """The same, for each value of a column, the most rows first."""
        scored: dict[str, list[Scored]] = defaultdict(list)
        left: dict[str, list[tuple[Measurement, str]]] = defaultdict(list)
        for s in self.scored:
            scored[column(s.row)].append(s)
        for row, reason in self.unsupported:
            left[column(row)].append((row, reason))
        names = sorted({**scored, **left}, key=lambda name: -len(scored[name]) - len(left[name]))
        return {name: Errors(scored=tuple(scored[name]), unsupported=tuple(left[name])) for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """Fits or does not, against what happened."""

    true_fit: int = 0
    false_fit: int = 0
    true_oom: int = 0
    false_oom: int = 0
    wrong: tuple[tuple[Measurement, str], ...] = ()
    unsupported: tuple[tuple[Measurement, str], ...] = ()

    @property
    def scored(self) -> int:
        """Rows decided."""
        return self.true_fit + self.false_fit + self.true_oom + self.false_oom


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A table's predictions judged."""

    where: str
    memory: Errors
    time: Errors
    runs: Errors
    fit: Decisions
    left_out: int = 0
    nothing_measured: tuple[Measurement, ...] = ()
    problems: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


Predict = Callable[[Measurement], Prediction]
DECIDED = {"fits": True, "oom": False}  # outcomes that were observed; claims and estimates are neither


def validate(table: Table, predict: Predict, *, grades: Iterable[str] = GRADES) -> Validation:
    """Predict every row and judge.

    Args:
        table: the measurements.
        predict: raises Unsupported for what cannot be expressed.
        grades: values of `quality` that are judged; a row without a grade always is.
    """
    wanted = set(grades)
    judged = [row for row in table.rows if not row.text("quality") or row.text("quality") in wanted]
    predicted = [(row, _attempt(predict, row)) for row in judged if row.is_measured]
    return Validation(
        where=table.where,
        memory=_memory(predicted),
        time=_time(predicted),
        runs=_runs(predicted),
        fit=_fit(predicted),
        left_out=len(table.rows) - len(judged),
        nothing_measured=tuple(row for row in judged if not row.is_measured),
        problems=table.problems,
        unread=table.unread,
    )


Attempt = Prediction | str  # a reason where there is none


def _attempt(predict: Predict, row: Measurement) -> Attempt:
    try:
        return predict(row)
    except Unsupported as reason:
        return str(reason)


def _memory(predicted: Sequence[tuple[Measurement, Attempt]]) -> Errors:
    rows = [(row, p) for row, p in predicted if row.peak_bytes]
    return Errors(
        scored=tuple(_memory_row(row, p) for row, p in rows if isinstance(p, Prediction)),
        unsupported=tuple((row, p) for row, p in rows if isinstance(p, str)),
    )


def band_of(memory: GpuMemory, kind: MemoryKind) -> Band:
    """Which of the three memories a row reports."""
    return {
        MemoryKind.ALLOCATED: memory.allocated,
        MemoryKind.RESERVED: memory.reserved,
        MemoryKind.DEVICE: memory.device,
    }[kind]


def _memory_row(row: Measurement, p: Prediction) -> Scored:
    band = band_of(p.memory, row.memory_kind)
    alive = (e for e in p.ledger.entries if e.device is Device.GPU and p.memory.fullest in e.phases)
    lines = tuple(sorted(alive, key=lambda e: -e.bytes)[:LARGEST_LINES])
    return Scored(row=row, predicted=band.point, measured=row.peak_bytes, low=band.low, upper=band.upper, lines=lines)


UNTIMED = "time is not modelled for this parallelism, precision, mixture or GPU"
UNCOUNTED = "a step time, but not how many sequences a step has"
UNCONVERTED = "TFLOPs by a formula that is not stated, or is another than model FLOPs, and no tokens"


def _time(predicted: Sequence[tuple[Measurement, Attempt]]) -> Errors:
    rows = [(row, p, _untimed(row, p)) for row, p in predicted if row.is_timed and not row.gpu_hours]
    scored = tuple(_time_row(row, p) for row, p, reason in rows if isinstance(p, Prediction) and not reason)
    return Errors(scored=scored, unsupported=tuple((row, reason) for row, _, reason in rows if reason))


def _untimed(row: Measurement, p: Attempt) -> str:
    """Why a row's time is not judged; "" where it is."""
    if isinstance(p, str):
        return p
    if not _tokens_per_s(row, p):
        return UNCOUNTED if row.number("step_time_s") else UNCONVERTED
    return UNTIMED if p.rate is None else ""


def _tokens_per_s(row: Measurement, p: Prediction) -> float:
    """As printed, else from the printed TFLOPs where their formula is known; 0: neither."""
    if row.tokens_per_s_per_gpu or not p.flops_per_token:
        return row.tokens_per_s_per_gpu
    return row.number("tflops_per_gpu") * TERA / p.flops_per_token


def _time_row(row: Measurement, p: Prediction) -> Scored:
    rate = p.rate or Rate(0.0, 0.0, 0.0)
    shown = p.run.row if p.run else row
    return Scored(
        row=shown, predicted=rate.point, measured=_tokens_per_s(row, p), low=rate.low, upper=rate.upper, run=p.run
    )


def _runs(predicted: Sequence[tuple[Measurement, Attempt]]) -> Errors:
    rows = [(row, p, _unrun(p)) for row, p in predicted if row.gpu_hours]
    scored = tuple(
        _run_row(row.gpu_hours, p.run, p.hours) for row, p, _ in rows if isinstance(p, Prediction) and p.run and p.hours
    )
    return Errors(scored=scored, unsupported=tuple((row, reason) for row, _, reason in rows if reason))


def _unrun(p: Attempt) -> str:
    """Why a run's hours are not judged; "" where they are."""
    if isinstance(p, str):
        return p
    return UNTIMED if p.hours is None else ""


def _run_row(measured: float, run: RunRow, hours: GpuHours) -> Scored:
    return Scored(
        row=run.row,
        predicted=hours.point,
        measured=measured,
        low=hours.low,
        upper=hours.upper,
        run=run,
        goodput=hours.goodput,
    )


OPEN = "activation checkpointing is not stated, and whether it fits depends on it"


def _fit(predicted: Sequence[tuple[Measurement, Attempt]]) -> Decisions:
    counts: Counter[str] = Counter()
    wrong: list[tuple[Measurement, str]] = []
    unsupported: list[tuple[Measurement, str]] = []
    for row, p in predicted:
        outcome = row.text("outcome").lower()
        if not outcome:
            continue
        if isinstance(p, str) or p.fits is None or outcome not in DECIDED:
            unsupported.append((row, _undecided(outcome, p)))
            continue
        right = p.fits is DECIDED[outcome]
        name = f"{'true' if right else 'false'}_{'fit' if p.fits else 'oom'}"
        counts[name] += 1
        if not right:
            wrong.append((row, name))
    return Decisions(wrong=tuple(wrong), unsupported=tuple(unsupported), **counts)


def _undecided(outcome: str, p: Attempt) -> str:
    """Why a row's decision is not judged."""
    if outcome not in DECIDED:
        return f"outcome {outcome[:40]}: neither fits nor oom was observed"
    return p if isinstance(p, str) else OPEN
