"""A calibration as JSON values: what `trainplan calibrate --json` prints and the report is written from."""

from __future__ import annotations

import math
from typing import Any

from .cases import Case, Quantity
from .outcome import Judged, Outcome, Refused
from .parameters import Fitted


def document(found: Outcome) -> dict[str, Any]:
    """rows, figures, errors over all rows and of each, what was refused, what no row measures."""
    profile = found.profile
    return {
        "schema_version": 1,
        "status": "calibrated",
        "gpu": profile.gpu,
        "rows": [_row(case) for case in found.cases],
        "figures": [_figure(f) for f in profile.figures],
        "not_measured": list(found.unmoved),
        "errors": [
            {
                "quantity": e.quantity,
                "rows": e.rows,
                "before_percent": round(e.before_percent, 2),
                "after_percent": round(e.after_percent, 2),
                "left_out_percent": _percent(e.left_out_percent),
            }
            for e in profile.errors
        ],
        "each": [_judged(j) for j in found.judged],
        "refused": [_refused(r) for r in found.refused],
    }


def _percent(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 2)


def _row(case: Case) -> dict[str, Any]:
    m = case.measured
    return {
        "label": case.label,
        "file": case.source,
        "gpu": case.gpu,
        "step_s": m.step_s,
        "allocated_bytes": m.allocated_bytes,
        "reserved_bytes": m.reserved_bytes,
        "device_bytes": m.device_bytes,
        "note": case.note,
    }


def _figure(f: Fitted) -> dict[str, Any]:
    return {
        "name": f.name,
        "label": f.parameter.label,
        "unit": f.parameter.unit,
        "before": f.shipped,
        "after": f.value.point,
        "low": f.value.low,
        "upper": f.value.upper,
        "rows": f.rows,
        "doubt_left": round(f.doubt_left, 4),
    }


def _judged(j: Judged) -> dict[str, Any]:
    is_fixed = j.quantity is Quantity.FIXED
    measured = j.measured if is_fixed else math.exp(j.measured)
    return {
        "label": j.case.label,
        "quantity": j.quantity.label,
        "measured": measured - 1 if j.quantity is Quantity.HELD else measured,
        "before_percent": _percent(100 * j.before),
        "after_percent": _percent(100 * j.after),
        "left_out_percent": _percent(None if j.left_out is None else 100 * j.left_out),
    }


def _refused(r: Refused) -> dict[str, Any]:
    return {"label": r.label, "file": r.source, "what": r.what or "the row", "reason": r.reason}
