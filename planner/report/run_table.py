"""The whole run: where the hours go, checkpoints, failures, electricity."""

from __future__ import annotations

from ..units import GIGA, HOUR_S, TERA, duration
from .table import table
from .words import Document

SHOWN_SHARE = 0.0005  # a line below it is shown as less than 0.1%
TENTHS_KWH = 1000.0  # below, tenths are shown


def run_text(cost: Document) -> str:
    """Hours by line, then what a checkpoint and a failure are, then electricity."""
    run = cost["run"]
    rows = [(row["name"], f"{row['hours']:,.2f}", _share(row["share"])) for row in run["lines"]]
    written, every = (duration(run[f"checkpoint_{key}_h"] * HOUR_S) for key in ("write", "interval"))
    total = ("the whole run", f"{cost['hours']:,.2f}", "")
    lines = table(rows, header=("", "hours", "share"), footer=total, align="lrr", indent="  ")
    return "\n".join(
        (
            f"The run: goodput {run['goodput']:.1%}",
            lines,
            f"  checkpoint: {size(run['checkpoint_bytes'])}, written in {written}, every {every} of work",
            f"  failures: {_failures(run['failures'])} expected, one every "
            f"{duration(run['hours_between_failures'] * HOUR_S)}",
            f"  electricity: {_kwh(cost['kwh'])}; emissions: {_kgco2(cost)}",
        )
    )


def size(amount: float) -> str:
    """Bytes on disk.

    >>> size(2.3e12), size(1.69e8)
    ('2.30 TB', '0.17 GB')
    """
    return f"{amount / TERA:,.2f} TB" if amount >= TERA else f"{amount / GIGA:,.2f} GB"


def _share(share: float) -> str:
    return "< 0.1%" if 0 < share < SHOWN_SHARE else f"{share:.1%}"


def _failures(number: float) -> str:
    return "fewer than 0.01" if number < 0.01 else f"{number:,.2f}" if number < 10 else f"{number:,.0f}"


def _kwh(kwh: float | None) -> str:
    if kwh is None:
        return "unknown, the GPU's power is not in the catalog"
    return f"{kwh:,.1f} kWh" if kwh < TENTHS_KWH else f"{kwh:,.0f} kWh"


def _kgco2(cost: Document) -> str:
    if cost["kgco2"] is not None:
        return f"{cost['kgco2']:,.1f} kgCO2"
    return "unknown" if cost["kwh"] is None else "not computed: give --grid-kgco2-per-kwh"
