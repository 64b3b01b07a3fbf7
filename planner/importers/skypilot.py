"""SkyPilot's catalogs: ~/.sky/catalogs/v8/CLOUD/vms.csv, one row a zone or region, USD per machine and hour.

Source: SkyPilot 0.14.1, sky/catalog/common.py and sky/skylet/constants.py. The files are undated; SkyPilot moves their
date of change also when a download fails, so it is when they were last tried. Side files are not read: metadata.csv is
wrong for several cards.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from .gcp import with_hosts
from .guards import imported
from .listed import Imported, Listed, Noted, Source, among
from .table import day_of, number, rows_of, text

COLUMNS = ("InstanceType", "AcceleratorName", "AcceleratorCount", "vCPUs", "MemoryGiB", "Price", "SpotPrice", "Region")
SCHEMA = re.compile(r"v(\d{1,4})")
TRIED = "(last tried; the prices may be older)"
EDITED = "(last changed by hand; SkyPilot no longer refreshes it)"
HINT = "run sky show-gpus once, or give the folder with --from"
MOST_CLOUDS = 100


def find_skypilot(folder: str | None) -> tuple[Path, ...]:
    """The catalogs of every cloud, of the newest schema there is.

    Args:
        folder: holds v8/CLOUD/vms.csv or CLOUD/vms.csv; where None, SkyPilot's own.

    Raises:
        InputError: there is none.
    """
    root = Path(folder) if folder is not None else Path(os.environ.get("SKY_RUNTIME_DIR") or Path.home()) / SKY
    try:
        schemas = [(int(m[1]), path) for path in root.glob("v*") if (m := SCHEMA.fullmatch(path.name))]
        newest = max(schemas)[1] if schemas else root
        found = sorted(path for path in newest.glob("*/vms.csv") if path.is_file() and path.parent.name.isprintable())
    except (OSError, ValueError) as error:
        raise InputError(f"{str(root)[:200]}: cannot be read, {error}; {HINT}") from None
    if not found:
        raise InputError(f"{str(root)[:200]}: no catalog of SkyPilot; v8/CLOUD/vms.csv is needed; {HINT}")
    return tuple(found[:MOST_CLOUDS])


SKY = Path(".sky") / "catalogs"


def read_skypilot(paths: tuple[Path, ...]) -> Imported:
    """What these catalogs offer, and what of them is left out and why.

    Raises:
        InputError: a file cannot be read, or is no catalog.
    """
    return imported("SkyPilot", paths, _catalog)


def _catalog(path: Path, noted: list[Noted]) -> tuple[Source, Iterable[Listed]]:
    listed, cloud = list(_listed(path, noted)), path.parent.name
    source = Source(cloud=cloud, citation=f"SkyPilot {_where(path)}", date=_date(path), rows=len(listed))
    return source, with_hosts(listed, noted) if among(cloud, "flex_in_on_demand") else listed


def _where(path: Path) -> str:
    """A file as people know it: v8/aws/vms.csv."""
    schema, cloud, name = path.parts[-3:] if len(path.parts) > 2 else ("", *path.parts[-2:])
    return "/".join(part for part in (schema if SCHEMA.fullmatch(schema) else "", cloud, name) if part)


def _date(path: Path) -> str:
    """The day a file was last tried, or last changed by the user: its digest is then not the one beside it."""
    digest = path.parents[1] / ".meta" / path.parent.name / "vms.csv.md5"
    try:
        kept = digest.read_text(encoding="ascii", errors="replace")[:100].strip()
        edited = kept != hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError:
        edited = False
    return f"{day_of(path)} {EDITED if edited else TRIED}"


def _listed(path: Path, noted: list[Noted]) -> Iterator[Listed]:
    where, cloud = _where(path), path.parent.name
    for line, cells in rows_of(path, where, COLUMNS, noted):
        yield Listed(
            where=f"{where} line {line}",
            cloud=cloud,
            instance=text(cells, "InstanceType"),
            accelerator=text(cells, "AcceleratorName"),
            count=number(cells, "AcceleratorCount"),
            vcpus=number(cells, "vCPUs"),
            memory_gib=number(cells, "MemoryGiB"),
            on_demand=number(cells, "Price"),
            spot=number(cells, "SpotPrice"),
            region=text(cells, "Region"),
            zone=text(cells, "AvailabilityZone"),
        )
