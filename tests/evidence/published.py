"""Published measurements against predictions, by source, beside the usual formula: the tables of the evidence page."""

from __future__ import annotations

import statistics
from functools import cache
from pathlib import Path

import trainplan
from trainplan.planner.measurements.score import Errors, Validation, validate
from trainplan.planner.measurements.table import Table, read_table
from trainplan.planner.units import GIB
from trainplan.strategies.measured import predict

from .baselines import usual_formula_bytes

DATA = Path(__file__).resolve().parents[1] / "data"
GRADES = ("A", "B")
FIT_HEADER = ("observed", "said to fit", "said not to fit")
UNSCORED_HEADER = ("reason", "memory rows", "fit rows")
SAME_CASE_HEADER = ("calculator", "GiB", "what it counts")
MEMORY_HEADER = ("source", "rows", "scored", "MAPE", "median", "bias", "in range", "usual formula, MAPE")


@cache
def table_of(name: str) -> Table:
    """One of the tables in tests/data."""
    return read_table(DATA / f"measured_{name}.csv")


@cache
def validation(name: str) -> Validation:
    """Predictions of a whole table, judged."""
    table = table_of(name)
    return validate(table, predict, grades=GRADES)


def memory_rows() -> list[tuple[str, ...]]:
    """All rows, then each source."""
    errors = validation("memory").memory
    return [_row("**all**", errors), *(_row(name, group) for name, group in errors.by(source_of).items())]


def source_of(row: object) -> str:
    """The column."""
    return row.text("source")  # type: ignore[attr-defined, no-any-return]  # reason: Errors.by hands over measurements


def _row(name: str, errors: Errors) -> tuple[str, ...]:
    usual = [abs(usual_formula_bytes(s.row) / s.measured - 1) for s in errors.scored]
    figures = (errors.mape_percent, errors.median_percent, errors.bias_percent, errors.within_band_percent)
    counts = (str(len(errors.scored) + len(errors.unsupported)), str(len(errors.scored)))
    shown = ["none" if f is None else f"{f:.1f} %" for f in figures]
    return (name, *counts, *shown, f"{100 * statistics.fmean(usual):.0f} %" if usual else "none")


def fit_rows() -> list[tuple[str, ...]]:
    """What happened against what was said."""
    fit = validation("fit").fit
    return [
        ("ran", str(fit.true_fit), str(fit.false_oom)),
        ("out of memory", str(fit.false_fit), str(fit.true_oom)),
    ]


def unscored_rows() -> list[tuple[str, ...]]:
    """Every reason for which a row could not be judged."""
    reasons: dict[str, list[int]] = {}
    for index, rows in enumerate((validation("memory").memory.unsupported, validation("fit").fit.unsupported)):
        for _, reason in rows:
            reasons.setdefault(reason, [0, 0])[index] += 1
    return [(reason, *map(str, counts)) for reason, counts in sorted(reasons.items(), key=lambda pair: -sum(pair[1]))]


# GiB per GPU, and what is counted; each program's own output for this case, 2026-10.
OTHERS = (
    ("DeepSpeed's estimator", 19.04, "states and four times the largest layer"),
    ("mlsysim", 21.40, "16 B a parameter, 2 s b h a layer"),
    ("llm-analysis", 22.62, "states, activations, prefetch, loss"),
    ("xtuner llm_calc", 24.31, "three phases"),
    ("SimuMax", 24.49, "states and replayed activations; nothing gathered"),
    ("gpu-mem-calculator", 32.88, "18 B a parameter, 20 % on top"),
    ("ftune", 34.16, "12 B a parameter, activations, 20 % on top"),
    ("EleutherAI calc_transformer_mem", 105.87, "34 s b h a layer, counted in full"),
)


def same_case_rows() -> list[tuple[str, ...]]:
    """The other calculators' figures between ours: the tensors, and the bound that decides what fits."""
    found = trainplan.estimate(
        "llama-2-70b", gpus="64xa100-80", zero=3, checkpointing="full", seq_len=4096, price=1.0,
        gpus_per_node=8, internode_gbps=1600.0,
    ).candidate.gpu  # fmt: skip
    ours = (
        ("**trainplan**, tensors", found.allocated_bytes / GIB, "every line of the ledger at the fullest phase"),
        (
            "**trainplan**, on the device",
            found.device_bytes / GIB,
            "with the allocator's cache, context, communicators",
        ),
    )
    return [(name, f"{size:.1f}", what) for name, size, what in sorted((*OTHERS, *ours), key=lambda row: row[1])]
