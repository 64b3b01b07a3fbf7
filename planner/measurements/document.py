"""A validation as JSON values: what `trainplan validate --json` prints and the report is written from."""

from __future__ import annotations

from typing import Any

from ..units import GIB
from .runs import TOLERANCE_PERCENT
from .score import Decisions, Errors, Scored, Validation
from .subject import strategy_of
from .table import Measurement

Rows = tuple[tuple[Measurement, str], ...]


def document(found: Validation) -> dict[str, Any]:
    """memory, time, runs and fit, with every row that could not be expressed."""
    return {
        "schema_version": 1,
        "status": "validated",
        "file": found.where,
        "columns_not_read": list(found.unread),
        "left_out_by_grade": found.left_out,
        "nothing_measured": [row.identity for row in found.nothing_measured],
        "problems": list(found.problems),
        "memory": _errors(found.memory, "GiB"),
        "time": _errors(found.time, "tokens/s per GPU"),
        "runs": _runs(found.runs),
        "fit": _decisions(found.fit),
    }


def _runs(errors: Errors) -> dict[str, Any]:
    """Each run is listed, not the worst alone."""
    return {
        **_errors(errors, "GPU-hours"),
        "tolerance_percent": TOLERANCE_PERCENT,
        "within_tolerance": errors.within_tolerance,
        "training_alone": _summary(errors.training_alone),
        "each": [_run(s) for s in errors.scored],
    }


def _run(s: Scored) -> dict[str, Any]:
    found = {key: value for key, value in _scored(s, 1).items() if key != "largest_lines"}
    if s.run is None:
        return found
    return found | {"goodput": round(s.goodput, 4), "assumed": s.run.assumed, "caveat": s.run.caveat}


def _errors(errors: Errors, unit: str) -> dict[str, Any]:
    return {
        "unit": unit,
        **_summary(errors),
        "by_source": _groups(errors, lambda row: row.text("source") or "not stated"),
        "by_gpu": _groups(errors, lambda row: row.text("gpu") or "not stated"),
        "by_strategy": _groups(errors, strategy_of),
        "worst": [_scored(s, GIB if unit == "GiB" else 1) for s in errors.worst],
        "unsupported_rows": _named(errors.unsupported),
    }


def _summary(errors: Errors) -> dict[str, Any]:
    return {
        "rows": len(errors.scored) + len(errors.unsupported),
        "scored": len(errors.scored),
        "unsupported": len(errors.unsupported),
        "mape_percent": _rounded(errors.mape_percent),
        "median_percent": _rounded(errors.median_percent),
        "bias_percent": _rounded(errors.bias_percent),
        "within_band_percent": _rounded(errors.within_band_percent),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _groups(errors: Errors, column: Any) -> dict[str, Any]:
    return {name: _summary(group) for name, group in errors.by(column).items()}


def _scored(s: Scored, unit: float) -> dict[str, Any]:
    return {
        "id": s.row.identity,
        "line": s.row.line,
        "measured": s.measured / unit,
        "predicted": s.predicted / unit,
        "low": s.low / unit,
        "upper": s.upper / unit,
        "error_percent": round(100 * s.error, 2),
        "largest_lines": [{"item": e.item.label, "section": e.item.section, "bytes": e.bytes} for e in s.lines],
    }


def _named(rows: Rows) -> list[dict[str, Any]]:
    return [{"id": row.identity, "line": row.line, "reason": reason} for row, reason in rows]


def _decisions(fit: Decisions) -> dict[str, Any]:
    return {
        "rows": fit.scored + len(fit.unsupported),
        "scored": fit.scored,
        "unsupported": len(fit.unsupported),
        "true_fit": fit.true_fit,
        "false_fit": fit.false_fit,
        "true_oom": fit.true_oom,
        "false_oom": fit.false_oom,
        "wrong_rows": [{"id": row.identity, "line": row.line, "decision": name} for row, name in fit.wrong],
        "unsupported_rows": _named(fit.unsupported),
    }
