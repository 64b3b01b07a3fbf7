"""`python -m tests.evidence.traces`: the ledger's activations against a trace of every row of the two oracle tests.

Writes tests/data/trace_errors.csv, which the evidence page shows; the tests hold every row within their tolerance.
"""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from trainplan.planner.trace import Subject, trace

from ..oracles import test_ledger_against_trace as dense
from ..oracles import test_mixtures_against_trace as mixtures

OUT = Path(__file__).resolve().parents[1] / "data" / "trace_errors.csv"
VERSIONS = "torch 2.13.0, transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2"
HEADER = ("model", "rows", "median_percent", "worst_percent")


def dense_errors() -> Iterator[tuple[str, float]]:
    """Each row's error at the overall peak; dequantised weights are a line of their own, of which less may be alive."""
    for row in (row for name in dense.MODELS for row in dense.covering(name)):
        model = dense.model_of(row.name, row.tiny)
        computation = dense.computation_of(model, row)
        subject = Subject(
            model=model, seq_len=row.seq_len, micro_batch=row.micro_batch, computation=computation, optimizer_step=False
        )
        found = max(trace(subject).activation_peak_bytes.values())
        peak = max(dense.by_phase(model, computation, row).values())
        above = peak + dense.dequantized(model, computation)
        yield row.name, 0.0 if peak <= found <= above else min(peak / found - 1, above / found - 1, key=abs)


def mixture_errors() -> Iterator[tuple[str, float]]:
    """The larger error of peak and kept bytes."""
    for key, seq_len, micro_batch, small, computation in mixtures.rows():
        family = mixtures.FAMILIES[key]
        subject = Subject(
            model=mixtures.model_of(key, small), seq_len=seq_len, micro_batch=micro_batch,
            computation=mixtures.at(family, computation), optimizer_step=False,
        )  # fmt: skip
        forms, found = mixtures.predicted(subject), mixtures.measured(subject)
        yield family.name, max((forms[what] / size - 1 for what, size in found.items()), key=abs)


def main() -> None:
    """Trace, and write a line per model."""
    errors: dict[str, list[float]] = defaultdict(list)
    for name, error in (*dense_errors(), *mixture_errors()):
        errors[name].append(100 * abs(error))
    with OUT.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# Written by: make evidence. {VERSIONS}.\n")
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        for name, found in errors.items():
            table.writerow((name, len(found), f"{statistics.median(found):.4f}", f"{max(found):.4f}"))


if __name__ == "__main__":
    main()
