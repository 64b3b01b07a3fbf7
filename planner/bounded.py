"""Bytes of a file that somebody else wrote: of a bounded size, or one line that says why not."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError


def named(path: Path | str) -> str:
    """A file as messages name it: one line, printable."""
    return "".join(c if c.isprintable() else "?" for c in str(path)[:200])


def unreadable(path: Path | str, error: Exception, *, do: str) -> InputError:
    """What is said of a file that cannot be read.

    Args:
        path: the file.
        error: why.
        do: what is needed, and what to do.
    """
    reason = getattr(error, "strerror", None) or ("not UTF-8" if isinstance(error, UnicodeError) else str(error))
    return InputError(f"{named(path)}: cannot be read, {reason}; {do}")


def read_bounded(path: Path | str, most_bytes: int, *, do: str, larger: str) -> bytes:
    """All of a file.

    Args:
        path: the file.
        most_bytes: it may have.
        do: what is needed, and what to do, where it is none or cannot be read.
        larger: the rest of what is said of one that is too large.

    Raises:
        InputError: missing, no file, unreadable, too large.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError(f"{named(path)}: not a file; {do}")
        with open(path, "rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, do=do) from None
    if len(data) > most_bytes:
        raise InputError(f"{named(path)}: larger than {most_bytes:,} bytes{larger}")
    return data
