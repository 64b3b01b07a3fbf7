"""Predictions beside measured runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..planner.errors import InputError, listed


def validate(path: str, *, grades: Sequence[str] = ("A", "B", "M"), good_rows: bool = False) -> dict[str, Any]:
    """How far predictions are from the measured runs of a table: memory, time, GPU-hours, and whether they fit.

    Args:
        path: a CSV; docs/reference/measurements.md describes its columns.
        grades: values of the column ``quality`` that are judged; rows without a grade always are.
        good_rows: judge the good rows of a table that has problems.

    Returns:
        The JSON document: ``memory`` and ``time`` with rows, scored, unsupported, mape_percent, median_percent,
        bias_percent, within_band_percent, by_source, worst; ``runs`` with the same of GPU-hours, and each run; ``fit``
        with true_fit, false_fit, true_oom, false_oom.

    Raises:
        InputError: no such table; or it has problems, which are all listed, and ``good_rows`` is not given.
    """
    from pathlib import Path

    from ..planner.measurements import score
    from ..planner.measurements.document import document
    from ..planner.measurements.table import read_table
    from ..strategies.measured import predict

    table = read_table(Path(path))
    if table.problems and not good_rows:
        raise InputError(f"correct these, or judge the other rows with --good-rows: {listed(table.problems)}")
    return document(score.validate(table, predict, grades=grades))
