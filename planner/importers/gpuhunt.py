"""gpuhunt's catalogs: DIR/PROVIDER.csv, one row for each machine, region and way to pay.

Source: dstackai/gpuhunt@3584151. Its folder is named by GPUHUNT_CATALOG_DIR; the public package brings no prices. Its
own table of accelerators is wrong for some (MI325X), so gpu_memory only tells cards of one name apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from .guards import imported
from .listed import Imported, Listed, Noted, Reason, Source
from .table import day_of, number, rows_of, text

COLUMNS = ("instance_name", "location", "price", "cpu", "memory", "gpu_count", "gpu_name", "gpu_memory", "spot")
VARIABLE = "GPUHUNT_CATALOG_DIR"
VERSION = re.compile(r"(20\d\d)(\d\d)(\d\d)-\d+")  # 20260818-42
CLOUDS = {"lambdalabs": "lambda"}
SPLIT_BY_MEMORY = {("A100", 80): "A100-80GB", ("V100", 32): "V100-32GB"}
MOST_PROVIDERS = 100


def find_gpuhunt(folder: str | None) -> tuple[Path, ...]:
    """The catalogs of every provider in a folder.

    Args:
        folder: holds PROVIDER.csv; where None, that of GPUHUNT_CATALOG_DIR.

    Raises:
        InputError: no folder is named, or it holds no catalog.
    """
    named = folder if folder is not None else os.environ.get(VARIABLE)
    if not named:
        raise InputError(f"--from: no folder, and {VARIABLE} is not set; allowed is one with PROVIDER.csv; give it")
    try:
        found = sorted(path for path in Path(named).glob("*.csv") if path.is_file() and path.stem.isprintable())
    except (OSError, ValueError) as error:
        raise InputError(f"{named[:200]}: cannot be read, {error}; give another folder with --from") from None
    if not found:
        raise InputError(f"{named[:200]}: no catalog of gpuhunt; PROVIDER.csv is needed; give its folder with --from")
    return tuple(found[:MOST_PROVIDERS])


def read_gpuhunt(paths: tuple[Path, ...]) -> Imported:
    """What these catalogs offer, and what of them is left out and why.

    Raises:
        InputError: a file cannot be read, or is no catalog.
    """
    return imported("gpuhunt", paths, _catalog)


def _catalog(path: Path, noted: list[Noted]) -> tuple[Source, Iterable[Listed]]:
    rows = list(_rows(path, noted))
    cloud = CLOUDS.get(path.stem, path.stem)
    source = Source(cloud=cloud, citation=f"gpuhunt {path.name}", date=_date(path), rows=len(rows))
    return source, _whole(rows)


def _date(path: Path) -> str:
    """The version that the folder is named after; else the day the file was written."""
    for part in reversed(path.resolve().parts[:-1]):
        if match := VERSION.fullmatch(part):
            return f"{'-'.join(match.groups())} (version {part})"
    return f"{day_of(path)} (last change of the file; the prices may be older)"


def _rows(path: Path, noted: list[Noted]) -> Iterator[tuple[bool, Listed]]:
    """Each row, and whether it is a spot price, which stands where on-demand prices do."""
    cloud = CLOUDS.get(path.stem, path.stem)
    for line, cells in rows_of(path, path.name, COLUMNS, noted):
        paid = text(cells, "spot").lower()
        if paid not in ("true", "false"):
            noted.append(Noted(reason=Reason.UNREADABLE, where=f"{path.name} line {line}", what=f"spot {paid[:20]!r}"))
            continue
        spot, price = paid == "true", number(cells, "price")
        yield (
            spot,
            Listed(
                where=f"{path.name} line {line}",
                cloud=cloud,
                instance=text(cells, "instance_name"),
                accelerator=_accelerator(text(cells, "gpu_name"), number(cells, "gpu_memory")),
                count=number(cells, "gpu_count"),
                vcpus=number(cells, "cpu"),
                memory_gib=number(cells, "memory"),
                on_demand=None if spot else price,
                spot=price if spot else None,
                region=text(cells, "location"),
            ),
        )


def _accelerator(name: str, memory_gb: float | None) -> str:
    """The name, with the memory where cards of one name differ in it."""
    return SPLIT_BY_MEMORY.get((name, int(memory_gb)), name) if memory_gb and 0 < memory_gb < 1e6 else name


def _whole(rows: list[tuple[bool, Listed]]) -> list[Listed]:
    """Both ways to pay for one machine in one place as one row, so that the guards can compare them."""
    on_demand: dict[tuple[str, ...], Listed] = {}
    spot: dict[tuple[str, ...], list[Listed]] = {}
    for is_spot, row in rows:
        key = (row.instance, row.accelerator, f"{row.count}", row.region)
        if is_spot:
            spot.setdefault(key, []).append(row)
        elif key not in on_demand or (row.on_demand or 0) < (on_demand[key].on_demand or 0):
            on_demand[key] = row
    both = [replace(row, spot=_least(spot.pop(key))) if key in spot else row for key, row in on_demand.items()]
    return both + [row for alone in spot.values() for row in alone]


def _least(rows: list[Listed]) -> float | None:
    """The lowest spot price."""
    return min((row.spot for row in rows if row.spot is not None), default=None)
