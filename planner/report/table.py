"""Plain text tables."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, align: str, indent: str = "  ") -> str:
    """Columns two blanks apart; ``align`` has one of l and r per column.

    >>> print(table([("a", "1"), ("bb", "22")], align="lr", indent=""))
    a    1
    bb  22
    """
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(align))]
    lines = (
        indent
        + "  ".join(
            cell.rjust(w) if side == "r" else cell.ljust(w) for cell, w, side in zip(row, widths, align, strict=True)
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
