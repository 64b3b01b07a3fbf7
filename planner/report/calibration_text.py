"""`trainplan calibrate` for people."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from ..units import GIB
from .table import table
from .words import Document

LISTED = 12  # rows, errors and refusals
WIDTH = 112
SHORT = 44  # characters of a label


def calibration_text(found: Document, file: str) -> str:
    """Rows, figures before and after, errors, what was refused, the file and what to do with it."""
    parts = [
        _title(found),
        _rows(found["rows"]),
        _figures(found),
        _errors(found["errors"], len(found["rows"])),
        _each(found["each"]),
        *([_refused(found["refused"])] if found["refused"] else []),
        f"Files written\n  {file}",
        f"Plan with it\n  trainplan plan --gpus {found['gpu']} --profile {file} --model MODEL",
    ]
    return "\n\n".join(parts)


def _title(found: Document) -> str:
    rows = len(found["rows"])
    return f"profile of {found['gpu']} from {rows} row{'' if rows == 1 else 's'}" + (
        "; one row moves figures only part of the way" if rows == 1 else ""
    )


def _label(text: str) -> str:
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def _more(total: int, what: str) -> str:
    return f"\n  and {total - LISTED} more {what}; --json lists all" if total > LISTED else ""


def _rows(rows: Sequence[Document]) -> str:
    cells = [
        (_label(r["label"]), r["file"], _seconds(r["step_s"]), *(_gib(r[f"{n}_bytes"]) for n in MEMORIES))
        for r in rows[:LISTED]
    ]
    header = ("row", "file", "step s", *(f"{name} GiB" for name in MEMORIES))
    kept = [n for n in range(len(header)) if n < 2 or any(cell[n] for cell in cells)]
    cells, header = [tuple(cell[n] for n in kept) for cell in cells], tuple(header[n] for n in kept)
    notes = [f"{_label(r['label'])}: {r['note']}" for r in rows[:LISTED] if r["note"]]
    lines = [line for note in notes for line in wrap(note, WIDTH, initial_indent="  ", subsequent_indent="    ")]
    shown = table(cells, header=header, align="ll" + "r" * (len(kept) - 2), indent="  ")
    return "\n".join([f"Measured\n{shown}{_more(len(rows), 'rows')}", *lines])


MEMORIES = ("allocated", "reserved", "device")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def _gib(value: int | None) -> str:
    return "" if value is None else f"{value / GIB:.2f}"


def _figures(found: Document) -> str:
    """Before and after; what no row measures stays as shipped."""
    cells = [
        (
            f["label"],
            f["unit"],
            *(f"{f[key]:.3f}" for key in ("before", "after")),
            f"{f['low']:.3f} to {f['upper']:.3f}",
            str(f["rows"]),
            f"{f['doubt_left']:.0%}",
        )
        for f in found["figures"]
    ]
    header = ("figure", "unit", "before", "after", "range", "rows", "doubt left")
    shown = table(cells, header=header, align="llrrrrr", indent="  ")
    left = found["not_measured"]
    kept = f"As shipped, since no row depends on them: {'; '.join(left)}." if left else ""
    lines = wrap(kept, WIDTH, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([f"Figures\n{shown}", *lines])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"


KEYS = ("before_percent", "after_percent", "left_out_percent")
HEADER = ("before", "after", "left out")


def _keys(rows: Sequence[Document]) -> tuple[str, ...]:
    """Before and after, and left out where any row was."""
    return KEYS if any(row[KEYS[-1]] is not None for row in rows) else KEYS[:-1]


def _errors(errors: Sequence[Document], rows: int) -> str:
    keys = _keys(errors)
    cells = [(e["quantity"], str(e["rows"]), *(_percent(e[key]) for key in keys)) for e in errors]
    header = ("mean error", "rows", *HEADER[: len(keys)])
    shown = table(cells, header=header, align="lr" + "r" * len(keys), indent="  ")
    if rows < 3:
        why = (
            "after: of the rows that were fitted, which is no proof; from three rows on each is planned without itself"
        )
    else:
        why = "left out: each row planned from the others alone, which is what a new plan can expect"
    worse = [e["quantity"] for e in errors if (e["left_out_percent"] or 0.0) > e["before_percent"]]
    if worse:
        why += f"; {' and '.join(worse)}: no better than as shipped, so that these rows do not speak for the profile"
    return "\n".join([f"Error before and after\n{shown}", *(f"  {line}" for line in wrap(why, WIDTH))])


def _each(rows: Sequence[Document]) -> str:
    """Every figure of every row: planned over measured less one; of many the largest after."""
    largest = sorted(rows, key=lambda r: -abs(r["after_percent"] or 0.0))[:LISTED]
    shown = rows if len(rows) <= LISTED else [r for r in rows if r in largest]
    keys = _keys(shown)
    cells = [(_label(r["label"]), r["quantity"], *(_signed(r[key]) for key in keys)) for r in shown]
    title = "Each row: planned over measured" + ("" if len(rows) <= LISTED else f", the {LISTED} farthest off after")
    header = ("row", "figure", *HEADER[: len(keys)])
    return f"{title}\n{table(cells, header=header, align='ll' + 'r' * len(keys), indent='  ')}"


def _refused(rows: Sequence[Document]) -> str:
    lines = []
    for row in rows[:LISTED]:
        text = f"{_label(row['label'])} ({row['file']}), {row['what']}: {row['reason']}"
        lines += wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(["Refused", *lines]) + _more(len(rows), "refused")
