"""Progress of long work on stderr: only where somebody watches, and only after a while."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_S = 1.0  # shorter work says nothing


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows one line, replaced by the next; nothing is left on the screen at the end."""
    began, shown, tty = time.perf_counter(), 0, sys.stderr.isatty()

    def show(text: str) -> None:
        nonlocal shown
        if tty and time.perf_counter() - began > QUIET_S:
            sys.stderr.write(f"\r{text[:100]:<{shown}}")
            sys.stderr.flush()
            shown = max(shown, min(len(text), 100))

    try:
        yield show
    finally:
        if shown:
            sys.stderr.write("\r" + " " * shown + "\r")
            sys.stderr.flush()
