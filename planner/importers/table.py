"""CSV files of any program: bounded, columns by name; a bad row is noted and never stops the rest."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ..errors import InputError
from ..units import MIB
from .listed import Noted, Reason

LARGEST_CSV_BYTES = 64 * MIB
MOST_ROWS = 500_000

Cells = Mapping[str, str]


class Reader(Protocol):
    """What csv.reader gives."""

    @property
    def line_num(self) -> int:
        """The line that was read last."""

    def __next__(self) -> list[str]:
        """The next row."""


def rows_of(path: Path, where: str, needed: tuple[str, ...], noted: list[Noted]) -> Iterator[tuple[int, Cells]]:
    """Line numbers and cells of a file's rows.

    Args:
        path: the file.
        where: what it is called in notes and messages.
        needed: columns without which it is another table.
        noted: what cannot be read is added here.

    Raises:
        InputError: it cannot be read, is too large, or is another table.
    """
    try:
        if path.stat().st_size > LARGEST_CSV_BYTES:
            raise InputError(f"{where}: larger than {LARGEST_CSV_BYTES:,} bytes, as no price catalog is; move it away")
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            yield from _rows(csv.reader(file), where, needed, noted)
    except OSError as error:
        raise InputError(f"{where}: cannot be read, {error.strerror or error}; see to its permissions") from None


def _rows(reader: Reader, where: str, needed: tuple[str, ...], noted: list[Noted]) -> Iterator[tuple[int, Cells]]:
    header: list[str] = []
    while reader.line_num < MOST_ROWS:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            noted.append(
                Noted(reason=Reason.UNREADABLE, where=f"{where} line {reader.line_num}", what=str(error)[:100])
            )
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            _check(header, where, needed)
        elif len(cells) != len(header):
            what = f"{len(cells)} cells for {len(header)} columns"
            noted.append(Noted(reason=Reason.UNREADABLE, where=f"{where} line {reader.line_num}", what=what))
        else:
            yield reader.line_num, dict(zip(header, cells, strict=True))
    if not header:
        _check(header, where, needed)


def _check(header: list[str], where: str, needed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        raise InputError(
            f"{where}: no column {', '.join(missing)}; a price catalog has {', '.join(needed)}; move it away"
        )


def number(cells: Cells, name: str) -> float | None:
    """A cell as a number: None where it is empty, NaN where it is something else.

    >>> number({"Price": "1.5"}, "Price"), number({"Price": ""}, "Price"), number({"Price": "free"}, "Price")
    (1.5, None, nan)
    """
    text = cells.get(name, "").strip()
    if not text or text.lower() == "nan":  # pandas writes an absent number so
        return None
    try:
        return float(text)
    except ValueError:
        return math.nan


def text(cells: Cells, name: str) -> str:
    """A cell's text; empty where the column is absent or pandas wrote nan."""
    found = cells.get(name, "").strip()
    return "" if found.lower() == "nan" else found


def day_of(path: Path) -> str:
    """The day a file was last written, in UTC."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).date().isoformat()
