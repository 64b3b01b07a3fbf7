"""How a job is started: what the user says of it, and what a launch target makes of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError

LONGEST_VALUE = 4096  # characters of a path


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where the job's files lie, and which data and weights it is given; None: the environment says it when it starts.

    Raises:
        InputError: a value that no shell and no file could hold as it stands.
    """

    folder: str
    data: str | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        wanted = (
            ("--out", "a folder's name", self.folder),
            ("--data", "a path or dataset", self.data),
            ("--model", "a path or hub id", self.model),
        )
        for name, what, value in wanted:
            if value is not None and not (value.strip() and value.isprintable() and len(value) <= LONGEST_VALUE):
                raise InputError(
                    f"{name}: not {what}, got {value[:40]!r}; allowed are 1 to {LONGEST_VALUE} printable characters, "
                    f"no line breaks; give another"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """Files of one target beside the plan's own, and how to start them."""

    files: Mapping[str, str]
    command: str  # of a shell, from where the folder's name holds
    cannot: tuple[str, ...] = ()  # what of the plan the target does not express, and what that means
    first: tuple[str, ...] = ()  # what must be done before it is started


def slug(name: str) -> str:
    """A name as schedulers, clouds and Kubernetes allow it: letters, digits and dashes, a letter first.

    >>> slug("Llama-3.1-70B"), slug("--x; rm -rf /"), slug("")
    ('trainplan-llama-3-1-70b', 'trainplan-x-rm-rf', 'trainplan')
    """
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return "-".join(["trainplan", *filter(None, kept.split("-"))])[:50].rstrip("-")
