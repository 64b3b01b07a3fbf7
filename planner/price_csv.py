"""Prices as CSV, one price a row: what `trainplan offers list --csv` writes and `--prices` reads back."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .catalog_files import (
    MAYBE_TEXT,
    NETWORK,
    NODE_FIELDS,
    NUMBER,
    PRICED,
    TERMS_FIELDS,
    TEXT,
    Field,
    Row,
    node_of,
    refuse,
    row_problems,
)
from .errors import InputError
from .hardware import USD, Gpu, Node, Offer, Tier
from .staleness import age_days, flag
from .terms import PLAIN, Terms
from .terms_files import lacking, terms_problems
from .units import GBIT_BYTES, GIB, TERA

TERMS = {key: field for key, field in TERMS_FIELDS.items() if key not in ("source", "date")}
FIELDS: Mapping[str, Field] = {
    "cloud": TEXT,
    **NODE_FIELDS,
    "tier": Field(str, among=tuple(tier.value for tier in PRICED)),
    "usd_per_hour": NUMBER,
    "currency": Field(str, False, among=(USD,)),
    "region": TEXT,
    "date": TEXT,
    "source": TEXT,
    "notes": MAYBE_TEXT,
    **TERMS,
    "terms_source": MAYBE_TEXT,
}
SAID = ("usd_per_gpu_hour", "age_days", "price_flag")  # written for people, not read back
YES, NO = "true", "false"


def write_csv(offers: Iterable[Offer]) -> str:
    """One line a price, with its age; cells of what is unknown are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, (*FIELDS, *SAID), lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(_cells, offers))
    return text.getvalue()


def _cells(offer: Offer) -> dict[str, object]:
    node, terms = offer.node, offer.terms
    own = {key: getattr(offer, key) for key in ("cloud", "instance", "region", "date", "source", "notes", "currency")}
    bounds = {key: getattr(terms, key) for key in TERMS if getattr(terms, key) != getattr(PLAIN, key)}
    machine = {
        "gpu": node.gpu.name,
        "gpus": node.gpus,
        "vcpus": node.vcpus,
        "host_memory_gib": _in(node.host_memory_bytes, GIB),
        "nvme_tb": _in(node.nvme_bytes, TERA),
        NETWORK: _in(node.internode_bytes_per_s, GBIT_BYTES),
    }
    said = {
        "usd_per_gpu_hour": f"{offer.usd_per_hour / node.gpus:.6g}",
        "age_days": age_days(offer.date),
        "price_flag": flag(offer.date),
    }
    price = {"tier": offer.tier.value, "usd_per_hour": offer.usd_per_hour, "terms_source": terms.source}
    cells = {**own, **machine, **price, **bounds, **said}
    return {key: YES if value is True else "" if value is None else value for key, value in cells.items()}


def _in(value: float | None, unit: float) -> str:
    """A figure in a unit, with every digit that matters."""
    return "" if value is None else f"{value / unit:.12g}"


def read_csv(text: str, *, where: str, find: Callable[[str], Gpu]) -> tuple[Offer, ...]:
    """Offers of a CSV text.

    Args:
        text: a header with the names of FIELDS, in any order; one price a line.
        where: what the text is called in messages.
        find: gives the accelerator of a name, or raises InputError.

    Raises:
        InputError: all problems in one line, each with its line number.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        _check_header(header, where)
        rows = [(reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        raise InputError(f"{where}: line {reader.line_num}: not CSV: {error}; correct that line") from None
    problems: list[str] = []
    nodes: dict[tuple[object, ...], Node] = {}
    found = [_offer(f"line {line}", _row(header, cells), find, nodes, problems) for line, cells in rows]
    refuse(where, problems)
    return tuple(offer for offer in found if offer is not None)


def _check_header(header: list[str], where: str) -> None:
    """The first line names columns that exist, each once, the required ones all."""
    missing = [name for name, field in FIELDS.items() if field.required and name not in header]
    unknown = [name[:40] for name in header if name not in FIELDS and name not in SAID]
    twice = sorted({name for name in header if header.count(name) > 1})
    problems = [f"{what} {', '.join(names)}" for what, names in (("no column", missing), ("unknown column", unknown),
                ("twice", twice)) if names]  # fmt: skip
    if problems:
        allowed = ", ".join(FIELDS)
        raise InputError(f"{where}: line 1: {'; '.join(problems)[:400]}; allowed are {allowed}; correct the header")


def _row(header: list[str], cells: list[str]) -> Row:
    """A line's cells by name, numbers as numbers; empty cells are absent, surplus ones stand under a name of none."""
    row: Row = {name: _value(FIELDS[name], cell) for name, cell in zip(header, cells, strict=False) if cell.strip()
                and name in FIELDS}  # fmt: skip
    return row if len(cells) == len(header) else {**row, f"{len(cells)} cells for {len(header)} columns": ""}


def _value(field: Field, cell: str) -> Any:
    """A cell as its field's kind; text where it is not that kind, which the row's check then names."""
    if field.kind is bool:
        return {YES: True, NO: False}.get(cell.strip().lower(), cell)
    if field.kind in (int, float):
        try:
            return field.kind(cell)
        except ValueError:
            return cell
    return cell


def _offer(
    label: str, row: Row, find: Callable[[str], Gpu], nodes: dict[tuple[object, ...], Node], problems: list[str]
) -> Offer | None:
    """One line as an offer; None with its problems added."""
    found = row_problems(label, row, FIELDS) or terms_problems(label, row)
    if not found:
        try:
            gpu = find(row["gpu"])
        except InputError as error:
            found = [f"{label}: {error}"]
    bounds = {key: row[key] for key in TERMS if key in row}
    terms = PLAIN if found else Terms(**bounds, source=row.get("terms_source", ""))
    if not found and (missing := lacking(row["tier"], terms)):
        found = [f"{label}: {missing}"]
    if found:
        problems += found
        return None
    return Offer(
        name=f"{row['cloud']}/{row['instance']}",
        node=node_of(row, row["cloud"], gpu, nodes),
        tier=Tier(row["tier"]),
        usd_per_hour=row["usd_per_hour"],
        notes=row.get("notes", ""),
        terms=terms,
        **{key: row[key] for key in ("cloud", "instance", "region", "date", "source")},
    )
