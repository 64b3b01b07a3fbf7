"""How old a price is, from the date that its source states, and what every output says about it.

Today is the clock's, or that of SOURCE_DATE_EPOCH (reproducible-builds.org), which tests and generated pages set.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, date, datetime

from .terms_files import constant

DATED = re.compile(r"(20\d\d)-(\d\d)(?:-(\d\d))?\b")
OWN = "as given"  # date of a price that the user states for this very run
UNDATED = "undated"
TO_COME = "dated in the future"
LARGEST_EPOCH_S = 4e9


def today() -> date:
    """Today in UTC; the day of SOURCE_DATE_EPOCH where that is set and readable."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdigit() and float(epoch) < LARGEST_EPOCH_S:
        return datetime.fromtimestamp(int(epoch), UTC).date()
    return datetime.now(UTC).date()


def priced_on(text: str) -> date | None:
    """The day that a source's date begins with; of a month its first day, so that it counts as old as it may be.

    >>> priced_on("2026-08-20 (last change of the post)"), priced_on("2026-08")
    (datetime.date(2026, 8, 20), datetime.date(2026, 8, 1))
    >>> priced_on("undated snapshot; lists p6-b300, so 2025-11 or later") is None
    True
    """
    match = DATED.match(text.strip())
    try:
        return date(int(match[1]), int(match[2]), int(match[3] or 1)) if match else None
    except ValueError:
        return None


def flag(text: str, on: date | None = None) -> str:
    """What must be said about a price of this date: that it is undated, old or to come; nothing of a fresh or own one.

    Args:
        text: the date as the source states it.
        on: the day that is judged; today.

    >>> flag("2026-01-01", date(2026, 4, 1)), flag("2026-01-01", date(2026, 4, 2))
    ('', '91 days old')
    >>> flag("undated snapshot", date(2026, 4, 2)), flag("as given")
    ('undated', '')
    >>> flag("2026-04-03", date(2026, 4, 2))
    'dated in the future'
    """
    if text == OWN:
        return ""
    day = priced_on(text)
    if day is None:
        return UNDATED
    days = ((on or today()) - day).days
    if days < 0:
        return TO_COME
    return f"{days} days old" if days > constant("stale_after_days").value else ""


def age_days(text: str, on: date | None = None) -> int | None:
    """Days since a price's date, None where it has none; a date to come counts as today.

    >>> age_days("2026-01-01", date(2026, 1, 31)), age_days("undated") is None
    (30, True)
    """
    day = priced_on(text)
    return None if day is None else max(0, ((on or today()) - day).days)


def remark(text: str, on: date | None = None) -> str:
    """The flag as a sentence for reports; empty where there is none.

    >>> remark("2026-01-01", date(2026, 4, 2))
    'this price is 91 days old, and prices older than 90 days are flagged: check it with the seller'
    """
    found = flag(text, on)
    if not found:
        return ""
    if found == UNDATED:
        return "this price is undated, so it may be old: check it with the seller"
    if found == TO_COME:
        return "this price is dated in the future, which no price list is: check its date"
    limit = constant("stale_after_days").value
    return f"this price is {found}, and prices older than {limit:g} days are flagged: check it with the seller"
