"""A user's own price list: TOML as in configs/offers, or CSV. It stands in place of the built-in offers, not beside."""

from __future__ import annotations

import os
from functools import lru_cache

from .bounded import named, read_bounded, unreadable
from .catalog import find_gpu
from .catalog_files import read_offers
from .errors import InputError
from .hardware import Offer
from .price_csv import read_csv
from .units import MIB

LARGEST_PRICES_BYTES = 16 * MIB
WRITE = "write one with trainplan offers import, or see trainplan offers list --csv for its columns"
NEEDED = f"a price list in TOML or CSV is needed; {WRITE}"


def read_prices(path: str) -> tuple[Offer, ...]:
    """Every offer of a price list.

    Args:
        path: a file; CSV where its name ends in .csv, else TOML.

    Raises:
        InputError: it cannot be read, is too large, holds no offer, or has problems, each with its line.
    """
    try:
        stat = os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, do=NEEDED) from None
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(path: str, _changed_ns: int, _size: int) -> tuple[Offer, ...]:
    """One reading for each state of a file: a plan asks several times."""
    where, text = named(path), _text(path)
    if path.lower().endswith(".csv"):
        found = read_csv(text, where=where, find=find_gpu)
    else:
        found, _ = read_offers(text, where=where, find=find_gpu, most_bytes=LARGEST_PRICES_BYTES)
    if not found:
        raise InputError(f"{where}: no offers; at least one price is needed; {WRITE}")
    return found


def _text(path: str) -> str:
    try:
        data = read_bounded(path, LARGEST_PRICES_BYTES, do=NEEDED, larger="; keep the clouds you use")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unreadable(path, error, do=NEEDED) from None
