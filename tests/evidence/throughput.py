"""Published throughput and whole runs against predictions, beside two baselines: tables of the evidence page."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache

from trainplan.planner.measurements.runs import TOLERANCE_PERCENT
from trainplan.planner.measurements.score import Errors, Scored, Validation, validate
from trainplan.planner.measurements.table import Measurement, read_table
from trainplan.planner.units import HOUR_S
from trainplan.strategies.measured import predict

from .baselines import constant_mfu, roofline, six_nd
from .published import DATA, source_of

TIME_HEADER = ("source", "rows", "scored", "MAPE", "median", "bias", "in band", "6ND, MAPE", "roofline, MAPE")
RUNS_HEADER = ("run", "measured", "predicted", "error", "6ND", "not stated, taken to be")
REASONS_HEADER = ("reason", "rows")


@cache
def validation(name: str) -> Validation:
    """Predictions of tests/data/NAME.csv, judged."""
    return validate(read_table(DATA / f"{name}.csv"), predict)


def is_mixture(row: Measurement) -> bool:
    """Whether its layers are mixtures of experts."""
    return row.text("quality") == "M" or bool(row.text("moe"))


def split(errors: Errors) -> tuple[Errors, Errors]:
    """Dense rows, mixtures."""
    dense = tuple(s for s in errors.scored if not is_mixture(s.row))
    mixed = tuple(s for s in errors.scored if is_mixture(s.row))
    left = errors.unsupported
    return (
        Errors(scored=dense, unsupported=tuple(pair for pair in left if not is_mixture(pair[0]))),
        Errors(scored=mixed, unsupported=tuple(pair for pair in left if is_mixture(pair[0]))),
    )


@cache
def mfu() -> float:
    """The one constant of 6ND, fitted to all scored rows."""
    return constant_mfu([(s.row, s.measured) for s in validation("throughput").time.scored])


@cache
def baselines() -> Mapping[str, tuple[float, float]]:
    """Errors of 6ND and of the roofline, by the row's id."""
    rows = ((s.row, s.measured) for s in validation("throughput").time.scored)
    return {row.identity: (six_nd(row, mfu()) / rate - 1, roofline(row) / rate - 1) for row, rate in rows}


def baseline_percent(scored: Sequence[Scored], which: int) -> float:
    """Mean absolute error of 6ND (0) or the roofline (1)."""
    return 100 * statistics.fmean(abs(baselines()[s.row.identity][which]) for s in scored)


def time_rows() -> list[tuple[str, ...]]:
    """Dense rows, mixtures, then each source of either."""
    dense, mixed = split(validation("throughput").time)
    rows = [_row("**dense**", dense), *_sources(dense), _row("**mixtures of experts**", mixed), *_sources(mixed)]
    return rows


def _sources(errors: Errors) -> list[tuple[str, ...]]:
    groups: Mapping[str, Errors] = errors.by(source_of)
    return [_row(name, group) for name, group in groups.items() if group.scored]


def _row(name: str, errors: Errors) -> tuple[str, ...]:
    figures = (errors.mape_percent, errors.median_percent, errors.bias_percent, errors.within_band_percent)
    counts = (str(len(errors.scored) + len(errors.unsupported)), str(len(errors.scored)))
    shown = ["none" if f is None else f"{f:.1f} %" for f in figures]
    others = [f"{baseline_percent(errors.scored, which):.0f} %" for which in (0, 1)] if errors.scored else ["none"] * 2
    return (name, *counts, *shown, *others)


def run_rows() -> list[tuple[str, ...]]:
    """Every judged run."""
    return [
        (
            s.row.identity,
            _hours(s.measured),
            _hours(s.predicted),
            f"{100 * s.error:+.1f} %",
            f"{100 * six_nd_run_error(s):+.0f} %",
            "; ".join(words for words in (s.run.assumed, s.run.caveat) if words) if s.run else "",
        )
        for s in validation("runs").runs.scored
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2f}"


def six_nd_run_error(scored: Scored) -> float:
    """6ND's error of a run's GPU-hours, at the constant that the throughput rows gave."""
    return scored.row.number("tokens") / six_nd(scored.row, mfu()) / HOUR_S / scored.measured - 1


def untimed_rows() -> list[tuple[str, ...]]:
    """Every reason for which a throughput is not judged, the most frequent first."""
    return _reasons(validation("throughput").time)


def unjudged_run_rows() -> list[tuple[str, ...]]:
    """The same, of whole runs."""
    return _reasons(validation("runs").runs)


def _reasons(errors: Errors) -> list[tuple[str, ...]]:
    return [(reason, str(count)) for reason, count in Counter(why for _, why in errors.unsupported).most_common()]


def runs_summary() -> str:
    """How many runs are within what they are held to, and the mean error, in a sentence."""
    runs = validation("runs").runs
    ours, others = runs.mape_percent, 100 * statistics.fmean(abs(six_nd_run_error(s)) for s in runs.scored)
    alone = runs.training_alone
    return (
        f"{runs.within_tolerance} of {len(runs.scored)} runs are within {TOLERANCE_PERCENT:.0f} %; "
        f"MAPE {ours:.1f} %, 6ND {others:.1f} %; of the {len(alone.scored)} whose hours are those of training alone, "
        f"{alone.within_tolerance} are, with {alone.mape_percent:.1f} %."
    )
