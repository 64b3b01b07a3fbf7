"""`trainplan validate` for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..units import GIB
from .table import table

Document = Mapping[str, Any]
HEADER = ("rows", "scored", "MAPE", "median", "bias", "in range")
LONGEST_NAME = 52
LISTED = 8


def validation_text(document: Document) -> str:
    """Memory, time, decisions, and what could not be judged."""
    parts = [_title(document), *_problems(document["problems"])]
    parts += [_errors_text(name, document[name]) for name in ("memory", "time") if document[name]["rows"]]
    if document["runs"]["rows"]:
        parts.append(_runs_text(document["runs"]))
    if document["fit"]["rows"]:
        parts.append(_fit_text(document["fit"]))
    return "\n\n".join(parts)


def _title(document: Document) -> str:
    left, empty, unread = (document[k] for k in ("left_out_by_grade", "nothing_measured", "columns_not_read"))
    judged = any(document[name]["rows"] for name in ("memory", "time", "runs", "fit"))
    notes = (
        f"{_rows(left)} left out: their grade was not asked for" if left else "",
        f"{_rows(len(empty))} without anything measured: {_ids(empty)}" if empty else "",
        f"columns not read: {', '.join(unread)}" if unread else "",
        "" if judged else "no row is left to judge",
    )
    return "\n".join([_plain(document["file"]), *(f"  {note}" for note in notes if note)])


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"


def _plain(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _problems(problems: Sequence[str]) -> list[str]:
    return (
        [f"{len(problems)} problems, their rows are not judged\n" + "\n".join(f"  {p}" for p in problems)]
        if problems
        else []
    )


TITLES = {
    "memory": "Memory: predicted against measured peak",
    "time": "Time: predicted against measured tokens/s per GPU",
}
GROUPS = (("by_source", "source"), ("by_gpu", "GPU"), ("by_strategy", "strategy"))


def _errors_text(name: str, errors: Document) -> str:
    rows = [("all", *_cells(errors))]
    tables = [table(rows, header=("", *HEADER), align="lrrrrrr", indent="  ")]
    for key, label in GROUPS:
        tables.append(_groups_text(label, errors[key]))
    if errors["worst"]:
        tables.append(_worst_text(errors))
    if errors["unsupported"]:
        tables.append(_unsupported_text(errors["unsupported_rows"]))
    return "\n\n".join([f"{TITLES[name]}\n{tables[0]}", *tables[1:]])


MOST_RUNS = 60


def _runs_text(runs: Document) -> str:
    """Every run, what was assumed of it, and those that cannot be expressed."""
    held = f"{runs['within_tolerance']} of {runs['scored']} within {runs['tolerance_percent']:.0f} %"
    parts = [
        "Runs: predicted against measured GPU-hours\n"
        + table(
            [("all", *_cells(runs)), ("of training alone", *_cells(runs["training_alone"]))],
            header=("", *HEADER),
            align="lrrrrrr",
            indent="  ",
        )
        + (f"\n  {held}" if runs["scored"] else "")
    ]
    if runs["each"]:
        parts.append(_each_run_text(runs["each"]))
    if runs["unsupported"]:
        parts.append(_unsupported_text(runs["unsupported_rows"]))
    return "\n\n".join(parts)


def _each_run_text(each: Sequence[Document]) -> str:
    rows = [
        (
            r["id"][:LONGEST_NAME],
            _amount(r["measured"]),
            _amount(r["predicted"]),
            f"{_amount(r['low'])} to {_amount(r['upper'])}",
            f"{r['error_percent']:+.1f} %",
            "; ".join(words for words in (r["assumed"], r["caveat"]) if words),
        )
        for r in each[:MOST_RUNS]
    ]
    header = ("runs", "measured", "predicted", "80 % band", "error", "not stated, taken to be")
    more = len(each) - MOST_RUNS
    text = table(rows, header=header, align="lrrrrl", indent="  ")
    return text + (f"\n  and {more} more, with --json" if more > 0 else "")


MOST_GROUPS = 12


def _groups_text(label: str, groups: Document) -> str:
    """The groups with the most rows."""
    shown = [(name[:LONGEST_NAME], *_cells(summary)) for name, summary in list(groups.items())[:MOST_GROUPS]]
    more = len(groups) - len(shown)
    text = table(shown, header=(label, *HEADER), align="lrrrrrr", indent="  ")
    return text + (f"\n  and {more} more, with --json" if more > 0 else "")


def _cells(summary: Document) -> tuple[str, ...]:
    keys = ("mape_percent", "median_percent", "bias_percent", "within_band_percent")
    percents = [
        "-" if summary[key] is None else f"{summary[key]:{'+' if key == 'bias_percent' else ''}.1f} %" for key in keys
    ]
    return (f"{summary['rows']:,}", f"{summary['scored']:,}", *percents)


def _worst_text(errors: Document) -> str:
    rows = [
        (
            w["id"][:LONGEST_NAME],
            _amount(w["measured"]),
            _amount(w["predicted"]),
            f"{w['error_percent']:+.1f} %",
            _lines(w),
        )
        for w in errors["worst"]
    ]
    header = ("worst rows", "measured", "predicted", "error", "largest lines, GiB" if errors["unit"] == "GiB" else "")
    return table(rows, header=header, align="lrrrl", indent="  ")


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _lines(worst: Document) -> str:
    return ", ".join(f"{line['item']} {line['bytes'] / GIB:.1f}" for line in worst["largest_lines"])


def _unsupported_text(rows: Sequence[Document]) -> str:
    """Reasons with the ids they concern, the most frequent first."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(str(row["reason"]), []).append(str(row["id"]))
    ordered = sorted(by_reason.items(), key=lambda pair: -len(pair[1]))
    cells = [(f"{len(ids):,}", reason[:100], _ids(ids)) for reason, ids in ordered]
    return table(cells, header=("rows", "cannot be expressed", ""), align="rll", indent="  ")


def _ids(ids: Sequence[str]) -> str:
    more = len(ids) - LISTED
    return ", ".join(ids[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _fit_text(fit: Document) -> str:
    rows = [
        ("ran", f"{fit['true_fit']:,}", f"{fit['false_oom']:,}"),
        ("out of memory", f"{fit['false_fit']:,}", f"{fit['true_oom']:,}"),
    ]
    parts = [
        "Does it fit\n" + table(rows, header=("observed", "predicted to fit", "not to fit"), align="lrr", indent="  ")
    ]
    if fit["wrong_rows"]:
        wrong = {
            name: [r["id"] for r in fit["wrong_rows"] if r["decision"] == name] for name in ("false_fit", "false_oom")
        }
        said = {"false_fit": "said to fit, ran out of memory", "false_oom": "said not to fit, ran"}
        parts += [f"  {said[name]}: {_ids(ids)}" for name, ids in wrong.items() if ids]
    if fit["unsupported"]:
        parts.append(_unsupported_text(fit["unsupported_rows"]))
    return "\n\n".join(parts)
