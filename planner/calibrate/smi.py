"""What nvidia-smi printed: memory used of each GPU, of `--query-gpu=index,name,memory.used,memory.total --format=csv`.

With units or without (nounits), once or again and again (-l 5): the largest of each GPU counts.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

from ..bounded import named, read_bounded
from ..errors import InputError
from ..units import MIB

LARGEST_BYTES = 16 * 2**20
MOST_GPUS = 1024
QUERY = "nvidia-smi --query-gpu=index,name,memory.used,memory.total --format=csv"
AMOUNT = re.compile(r"([0-9]{1,8})(?: MiB)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One GPU of the machine."""

    index: str
    name: str
    used_bytes: int
    total_bytes: int  # 0: not asked for


def read_smi(path: Path) -> tuple[Card, ...]:
    """Every GPU at its fullest.

    Raises:
        InputError: it cannot be read, or is no such table; the line says where.
    """
    data = read_bounded(
        path,
        LARGEST_BYTES,
        do="what nvidia-smi prints is needed; give its name",
        larger="; keep the part while the job ran",
    )
    where = named(path)
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{where}: not CSV, {str(error)[:100]}; write it with {QUERY}") from None
    numbered = [(n, [c.strip() for c in row]) for n, row in enumerate(rows, 1) if any(c.strip() for c in row)]
    if not numbered:
        raise InputError(f"{where}: empty; write it with {QUERY}")
    header = [cell.split(" ")[0] for cell in numbered[0][1]]
    if "memory.used" not in header or len(set(header)) != len(header):
        raise InputError(f"{where}: no header with memory.used; write it with {QUERY}")
    unit = numbered[0][1][header.index("memory.used")]
    if not unit.endswith("[MiB]"):
        raise InputError(f"{where}: memory.used is not in MiB, got {unit[:40]!r}; write it with {QUERY}")
    cards: dict[str, Card] = {}
    for number, cells in numbered[1:]:
        card = _card(header, cells, f"{where}:{number}")
        if card and (card.index not in cards or card.used_bytes > cards[card.index].used_bytes):
            cards[card.index] = card
        if len(cards) > MOST_GPUS:
            raise InputError(f"{where}: more than {MOST_GPUS:,} GPUs; give those of one node")
    if not cards:
        raise InputError(f"{where}: no GPUs below the header; write it with {QUERY}")
    return tuple(cards.values())


def _card(header: list[str], cells: list[str], place: str) -> Card | None:
    """One row; None where it is the header once more."""
    if len(cells) != len(header):
        raise InputError(f"{place}: {len(cells)} cells, the header has {len(header)}; write it with {QUERY}")
    row = dict(zip(header, cells, strict=True))
    if row["memory.used"].startswith("memory.used"):
        return None
    name = row.get("name", "")[:100]
    return Card(
        index=row.get("index", "0")[:20],
        name="".join(c if c.isprintable() else "?" for c in name),
        used_bytes=_bytes(row["memory.used"], place, "memory.used"),
        total_bytes=_bytes(row["memory.total"], place, "memory.total") if "memory.total" in row else 0,
    )


def _bytes(cell: str, place: str, column: str) -> int:
    match = AMOUNT.fullmatch(cell)
    if match is None:
        raise InputError(f"{place}: {column}: not an amount, got {cell[:40]!r}; allowed is such as 40536 MiB")
    return int(match[1]) * MIB
