"""A profile: one platform's figures as a small TOML file. Read back it is untrusted: size, keys, types and ranges."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ..bounded import named, read_bounded, unreadable
from ..calibration import Calibration, Range
from ..errors import InputError
from .parameters import Fitted, calibration_of, parameters

SCHEMA_VERSION = 1
LARGEST_BYTES = 2**18
MOST_ROWS = 1000
LONGEST_TEXT = 300
AGAIN = "write it again with trainplan calibrate"
NEEDED = f"a profile is needed; {AGAIN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One row that was fitted."""

    label: str
    file: str
    measured: str  # in words: "step time, allocated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Mean absolute error of one quantity over the rows, percent."""

    quantity: str
    rows: int
    before_percent: float
    after_percent: float
    left_out_percent: float | None  # each row planned from the others; None below three


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The figures of one GPU type, and where they come from."""

    gpu: str
    trainplan: str
    date: str
    figures: tuple[Fitted, ...]
    rows: tuple[Source, ...]
    errors: tuple[Agreement, ...]

    @cached_property
    def calibration(self) -> Calibration:
        """As the models carry it."""
        return calibration_of({f.name: f.value for f in self.figures})


HEAD = """# Written by trainplan calibrate; used by --profile FILE. Rates are factors on those that this version ships.
# How it was fitted, and what each figure means: docs/explanation/calibration.md.
"""


def text_of(profile: Profile) -> str:
    """The file."""
    head = {key: getattr(profile, key) for key in ("gpu", "trainplan", "date")}
    parts = [HEAD + _lines({"schema_version": SCHEMA_VERSION, **head})]
    parts += [f"[figures.{f.name}]  # {f.parameter.label}\n" + _lines(_figure_row(f)) for f in profile.figures]
    parts += [f"[errors.{_key(e.quantity)}]\n" + _lines(_error_row(e)) for e in profile.errors]
    parts += ["[[rows]]\n" + _lines({"label": r.label, "file": r.file, "measured": r.measured}) for r in profile.rows]
    return "\n".join(parts)


def _figure_row(f: Fitted) -> dict[str, Any]:
    value = f.value
    return {
        "value": _rounded(value.point),
        "low": _rounded(value.low, up=False),
        "upper": _rounded(value.upper, up=True),
        "unit": f.parameter.unit,
        "shipped": _rounded(f.shipped),
        "rows": f.rows,
        "doubt_left": _rounded(f.doubt_left),
    }


DIGITS = 6


def _rounded(value: float, up: bool | None = None) -> float:
    """To six digits behind the point, ends of a range outwards: a bound is not lowered by printing it."""
    scale: int = 10**DIGITS
    if up is None:
        return round(value, DIGITS)
    whole: int = math.ceil(value * scale) if up else math.floor(value * scale)
    return whole / scale


def _error_row(e: Agreement) -> dict[str, Any]:
    left = {} if e.left_out_percent is None else {"left_out_percent": round(e.left_out_percent, 2)}
    return {
        "rows": e.rows,
        "before_percent": round(e.before_percent, 2),
        "after_percent": round(e.after_percent, 2),
        **left,
    }


def _key(label: str) -> str:
    return label.replace(" ", "_")


def _lines(row: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_quoted(value)}\n" for key, value in row.items())


def _quoted(value: Any) -> str:
    """A TOML value; texts lose what does not print."""
    if not isinstance(value, str):
        return repr(value)
    plain = "".join(c if c.isprintable() else "?" for c in value[:LONGEST_TEXT])
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# -------------------------------------------------------------------------------------------------------------- reading


def read_profile(path: str) -> Profile:
    """A profile file.

    Raises:
        InputError: it cannot be read, is too large, or is no profile; all that is wrong with it in one line.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, do=NEEDED) from None
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(path: str, _changed_ns: int, _size: int) -> Profile:
    """One value for each state of a file: caches are keyed by its calibration."""
    import tomllib

    where, data = named(path), read_bounded(path, LARGEST_BYTES, do=NEEDED, larger=f", as no profile is; {AGAIN}")
    try:
        table = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise unreadable(path, error, do=NEEDED) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not TOML: {str(error).splitlines()[0][:200]}; {AGAIN}") from None
    return _profile(table, where)


# What a table may hold: key -> (type, lowest, highest); "key?" may be missing.
_NUMBER, _COUNT, _TEXT = "a number", "a whole number", "a text"
_FIGURE = {
    "value": _NUMBER, "low": _NUMBER, "upper": _NUMBER, "unit": _TEXT, "shipped": _NUMBER, "rows": _COUNT,
    "doubt_left": _NUMBER,
}  # fmt: skip
_ERROR = {"rows": _COUNT, "before_percent": _NUMBER, "after_percent": _NUMBER, "left_out_percent?": _NUMBER}
_ROW = {"label": _TEXT, "file": _TEXT, "measured": _TEXT}
_HEAD = {"schema_version": _COUNT, "gpu": _TEXT, "trainplan": _TEXT, "date": _TEXT}
_TABLES = ("figures", "errors", "rows")


def _profile(table: dict[str, Any], where: str) -> Profile:
    problems = list(_problems(table))
    if problems:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise InputError(f"{where}: {'; '.join(problems[:MOST_PROBLEMS])}{more}; {AGAIN}")
    return Profile(
        gpu=table["gpu"],
        trainplan=table["trainplan"],
        date=table["date"],
        figures=tuple(
            Fitted(
                name=name,
                value=Range(*(float(row[key]) for key in ("low", "value", "upper"))),
                rows=row["rows"],
                doubt_left=float(row["doubt_left"]),
            )
            for name, row in table["figures"].items()
        ),
        rows=tuple(Source(**row) for row in table.get("rows", [])),
        errors=tuple(
            Agreement(quantity=name.replace("_", " "), left_out_percent=row.get("left_out_percent"), **_without(row))
            for name, row in table.get("errors", {}).items()
        ),
    )


MOST_PROBLEMS = 20


def _without(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "left_out_percent"}


def _problems(table: dict[str, Any]) -> Iterator[str]:
    """All that is wrong, in the order of the file's parts."""
    version = table.get("schema_version")
    if version != SCHEMA_VERSION:
        yield f"schema_version is {_shown(version)}; this trainplan reads {SCHEMA_VERSION}"
    yield from _wrong({k: v for k, v in table.items() if k not in _TABLES}, _HEAD, "")
    figures, errors, rows = table.get("figures"), table.get("errors", {}), table.get("rows", [])
    if not isinstance(figures, dict) or not figures:
        yield "figures: none; at least one table [figures.NAME] is needed"
    elif not isinstance(errors, dict) or not isinstance(rows, list):
        yield "errors or rows: no tables; allowed are [errors.NAME] and [[rows]]"
    elif len(rows) > MOST_ROWS:
        yield f"rows: {len(rows):,}; allowed are {MOST_ROWS:,}"
    else:
        for name, row in figures.items():
            yield from _wrong_figure(name, row)
        for name, row in errors.items():
            yield from _wrong(row, _ERROR, f"errors.{name[:40]}: ")
        for index, row in enumerate(rows):
            yield from _wrong(row, _ROW, f"rows[{index}]: ")


def _wrong(row: Any, shape: Mapping[str, str], where: str) -> Iterator[str]:
    if not isinstance(row, dict):
        yield f"{where}is {_shown(row)}, not a table"
        return
    allowed = {key.removesuffix("?"): kind for key, kind in shape.items()}
    for key in row:
        if key not in allowed:
            yield f"{where}unknown key {key[:40]!r}; allowed are {', '.join(allowed)}"
        elif not _is(row[key], allowed[key]):
            yield f"{where}{key} is {_shown(row[key])}, not {allowed[key]}"
    for key in shape:
        if not key.endswith("?") and key not in row:
            yield f"{where}{key} is missing"


def _is(value: Any, kind: str) -> bool:
    if kind == _TEXT:
        return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_TEXT
    if kind == _COUNT:
        return type(value) is int and 0 <= value <= 10**6
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e9


def _wrong_figure(name: str, row: Any) -> Iterator[str]:
    known = {p.name: p for p in parameters()}
    if name not in known:
        yield f"figures: unknown {name[:40]!r}; allowed are {', '.join(known)}"
        return
    found = list(_wrong(row, _FIGURE, f"figures.{name}: "))
    yield from found
    if found:
        return
    least, most = known[name].allowed
    if not least - TOLERANCE <= row["value"] <= most + TOLERANCE:
        yield f"figures.{name}: value is {row['value']:g}; allowed is {least:.3g} to {most:.3g}"
    if not row["low"] <= row["value"] <= row["upper"]:
        shown = ", ".join(f"{row[key]:g}" for key in ("low", "value", "upper"))
        yield f"figures.{name}: low, value and upper are {shown}, not ascending"
    if row["upper"] > WIDEST * max(most, 1.0) or row["low"] < min(least, 0.0) - TOLERANCE:
        yield f"figures.{name}: its range is {row['low']:g} to {row['upper']:g}, wider than any that rows give"


TOLERANCE = 1e-5  # of printing
WIDEST = 20.0  # times the highest value believed: upper ends are raised to hold what was measured


def _shown(value: Any) -> str:
    return repr(value)[:40]
