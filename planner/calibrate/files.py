"""Bytes of a file that somebody else wrote: of a bounded size, or one line that says why not."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def named(path: Path | str) -> str:
    """A file as messages name it: one line, printable."""
    return "".join(c if c.isprintable() else "?" for c in str(path)[:200])


def read_bounded(path: Path, most_bytes: int, *, wanted: str, smaller: str) -> bytes:
    """All of a file.

    Args:
        path: the file.
        most_bytes: it may have.
        wanted: what it should be, in messages.
        smaller: what to do about one that is too large.

    Raises:
        InputError: missing, no file, unreadable, too large.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{named(path)}: not a file; {wanted} is needed; give its name")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{named(path)}: cannot be read, {reason}; {wanted} is needed; give its name") from None
    if len(data) > most_bytes:
        raise InputError(f"{named(path)}: larger than {most_bytes:,} bytes; {smaller}")
    return data
