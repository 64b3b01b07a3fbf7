"""A user's own price list: TOML as in configs/offers, or CSV. It stands in place of the built-in offers, not beside."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from .catalog import find_gpu
from .catalog_files import read_offers
from .errors import InputError
from .hardware import Offer
from .price_csv import read_csv
from .units import MIB

LARGEST_PRICES_BYTES = 16 * MIB
WRITE = "write one with trainplan offers import, or see trainplan offers list --csv for its columns"


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
        raise _unreadable(path, error) from None
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _read(path: str, _changed_ns: int, _size: int) -> tuple[Offer, ...]:
    """One reading for each state of a file: a plan asks several times."""
    where, text = _named(path), _text(path)
    if path.lower().endswith(".csv"):
        found = read_csv(text, where=where, find=find_gpu)
    else:
        found, _ = read_offers(text, where=where, find=find_gpu, most_bytes=LARGEST_PRICES_BYTES)
    if not found:
        raise InputError(f"{where}: no offers; at least one price is needed; {WRITE}")
    return found


def _text(path: str) -> str:
    try:
        if not Path(path).is_file():
            raise InputError(f"{_named(path)}: not a file; a price list in TOML or CSV is needed; {WRITE}")
        with open(path, "rb") as file:
            data = file.read(LARGEST_PRICES_BYTES + 1)
        if len(data) > LARGEST_PRICES_BYTES:
            raise InputError(f"{_named(path)}: larger than {LARGEST_PRICES_BYTES:,} bytes; keep the clouds you use")
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _named(path: str) -> str:
    """The file as messages name it."""
    return "".join(c if c.isprintable() else "?" for c in path[:200])


def _unreadable(path: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or ("not UTF-8" if isinstance(error, UnicodeError) else str(error))
    return InputError(f"{_named(path)}: cannot be read, {reason}; a price list in TOML or CSV is needed; {WRITE}")
