"""Units: bytes in GiB, rates in GB/s and TFLOP/s, counts and durations as people type them. Converted here only."""

from __future__ import annotations

import math
import re

from .errors import InputError

GBIT_BYTES = 1e9 / 8  # bytes of a Gbit
GIB = 2**30
MIB = 2**20
GIGA = 1e9
TERA = 1e12
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

_COUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)([kmbt]?)", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|d|w|m)?", re.IGNORECASE)
_SECONDS = {"m": 60.0, "h": HOUR_S, "d": DAY_S, "w": 7 * DAY_S}
LARGEST_COUNT = 10**15


def parse_count(text: str, *, where: str) -> int:
    """Read a positive count with an optional k, M, B or T.

    >>> parse_count("2B", where="--tokens"), parse_count("1.5e3", where="--tokens"), parse_count("8k", where="x")
    (2000000000, 1500, 8000)
    """
    match = _COUNT.fullmatch(text.strip().replace(",", "").replace("_", ""))
    value = float(match[1]) * _SCALE[match[2].lower()] if match else math.nan
    if not (1 <= value <= LARGEST_COUNT) or value != int(value):
        raise InputError(
            f"{where}: not a count, got {text[:40]!r}; allowed are whole numbers from 1 to 1e15, with k, M, B or T; "
            f"write for example 2B or 500M"
        )
    return int(value)


def parse_duration_s(text: str, *, where: str) -> float:
    """Read a positive duration: hours (h), days (d), weeks (w); a bare number is hours.

    >>> parse_duration_s("14d", where="--deadline") / DAY_S
    14.0
    """
    match = _DURATION.fullmatch(text.strip())
    value = float(match[1]) * _SECONDS[(match[2] or "h").lower()] if match else math.nan
    if not (60 <= value <= 3650 * DAY_S):
        raise InputError(
            f"{where}: not a duration, got {text[:40]!r}; allowed are 1m to 3650d with m (minutes), h, d or w; "
            f"write for example 14d or 36h"
        )
    return value


def gib(amount: float) -> str:
    """Bytes as GiB.

    >>> gib(85_899_345_920)
    '80.00 GiB'
    """
    return f"{amount / GIB:,.2f} GiB"


def gib_count(number: float) -> str:
    """A number of GiB.

    >>> gib_count(1.5)
    '1.5 GiB'
    """
    return f"{number:,.1f} GiB"


def usd(amount: float) -> str:
    """Dollars; cents below a hundred.

    >>> usd(12.5), usd(123456.7)
    ('$12.50', '$123,457')
    """
    return f"${amount:,.2f}" if abs(amount) < 100 else f"${amount:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.0333), duration(30), duration(300), duration(5400 * 2), duration(5 * DAY_S)
    ('33.3 ms', '30.0 s', '5.0 min', '3.0 h', '5.0 d')
    """
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    for limit, unit_s, unit in ((120, 1.0, "s"), (2 * HOUR_S, 60.0, "min"), (72 * HOUR_S, HOUR_S, "h")):
        if seconds < limit:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds / DAY_S:.1f} d"


def count(number: float) -> str:
    """A large count with its letter.

    >>> count(70_553_706_496), count(1_048_576), count(51_200), count(512)
    ('70.6B', '1.05M', '51.2k', '512')
    """
    for scale, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= max(scale, 10**4):
            return f"{number / scale:.3g}{letter}"
    return f"{number:g}"
