"""Tables, plain and Markdown, and numbers that add up to their printed total."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"[-+]?\$?[0-9][0-9,.]*(?: ?%| ?[A-Za-z]{1,3})?|unknown|none|-|")


def table(
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str] = (),
    footer: Sequence[str] = (),
    align: str = "",
    indent: str = "",
) -> str:
    """Columns two blanks apart, without trailing blanks.

    Args:
        rows: cells, as many in each row.
        header: names of the columns, if any.
        footer: totals below a rule, if any.
        align: one of l and r per column; left out, columns of numbers go to the right.
        indent: before every line.

    >>> print(table([("a", "1"), ("bb", "22")], header=("name", "n")))
    name   n
    a      1
    bb    22
    """
    body = [tuple(row) for row in rows]
    if not body:
        return ""
    sides = align or _sides(body)
    ends = [tuple(end) for end in (header, footer) if end]
    widths = [max(map(len, column)) for column in zip(*body, *ends, strict=True)]
    lines = [*([_line(header, widths, sides)] if header else []), *(_line(row, widths, sides) for row in body)]
    if footer:
        total = _line(footer, widths, sides)
        lines += ["-" * max(map(len, (*lines, total))), total]
    return "\n".join(indent + line for line in lines)


def _line(row: Sequence[str], widths: Sequence[int], sides: str) -> str:
    """One line of cells."""
    cells = (c.rjust(w) if side == "r" else c.ljust(w) for c, w, side in zip(row, widths, sides, strict=True))
    return "  ".join(cells).rstrip()


def _sides(body: Sequence[Sequence[str]]) -> str:
    """The alignment of each column: right where every cell is a number, or says that there is none."""
    return "".join("r" if all(map(_NUMBER.fullmatch, column)) else "l" for column in zip(*body, strict=True))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped.

    >>> print(markdown_table(("a",), [("x|y",)]))
    | a |
    | --- |
    | x\\|y |
    """
    lines = [header, ("---",) * len(header), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def apportioned(amounts: Sequence[float], unit: float) -> list[int]:
    """Whole units that add up to the rounded sum: each amount is rounded down, then those that lost most are raised.

    >>> apportioned([0.4, 0.4, 0.4], 1.0), apportioned([1.5, 1.5], 1.0)
    ([1, 0, 0], [2, 1])
    """
    whole = [int(amount // unit) for amount in amounts]
    missing = round(sum(amounts) / unit) - sum(whole)
    lost = sorted(range(len(amounts)), key=lambda i: whole[i] * unit - amounts[i])
    for index in lost[: max(0, missing)]:
        whole[index] += 1
    return whole
