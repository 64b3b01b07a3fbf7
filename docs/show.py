"""Prints the pages' generated parts: the program is run and its output goes into the page, nothing is typed.

A page begins its first block with ``import sys; sys.path.insert(0, "docs"); import show``. Commands run in a fresh
folder that a page's later blocks share, so that a plan made above can be explained below.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import cog
from trainplan.cli.main import run_root

FIXED = {  # whatever the terminal's width and whenever the pages are printed
    "COLUMNS": "100",  # of help texts
    "SOURCE_DATE_EPOCH": "1795564800",  # 2026-11-25, the day on which prices are judged
}
SECONDS = re.compile(r"(?m)^(Solver.*?),? [0-9]+\.[0-9]+ s$")  # the one figure that differs between runs
ELIDED = "..."
FOLDERS: dict[str, tempfile.TemporaryDirectory[str]] = {}


def fence(text: str, kind: str) -> None:
    """One code block."""
    cog.outl(f"\n```{kind}\n{text.rstrip()}\n```\n")


def console(*commands: str, only: tuple[str, ...] = ()) -> None:
    """Run commands and show them with their output.

    Args:
        commands: lines after the prompt, each beginning with ``trainplan``.
        only: beginnings of the sections (paragraphs) to show; what is left out is shown as three dots.
    """
    with _working_folder():
        shown = [f"$ {command}\n{_output(command, only)}".rstrip() for command in commands]
    fence("\n".join(shown), "console")


def _output(command: str, only: tuple[str, ...]) -> str:
    """What a command prints on stdout and stderr, and its exit status where that is not 0."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        status = run_root(shlex.split(command)[1:])
    printed = _selected(SECONDS.sub(r"\1", text.getvalue()).rstrip(), only)
    return printed + (f"\n$ echo $?\n{status}" if status else "")


def _selected(text: str, only: tuple[str, ...]) -> str:
    """The paragraphs whose first line begins with one of ``only``; everything where one of them begins nothing."""
    paragraphs = text.split("\n\n")
    if not only or not all(any(p.startswith(start) for p in paragraphs) for start in only):
        return text
    kept = [p if p.startswith(only) else ELIDED for p in paragraphs]
    joined = [p for i, p in enumerate(kept) if p is not ELIDED or i == 0 or kept[i - 1] is not ELIDED]
    return "\n\n".join(joined)


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """The page's folder, a fixed width, a fixed day, and the caller's folder again afterwards."""
    before, outside = os.getcwd(), {name: os.environ.get(name) for name in FIXED}
    folder = FOLDERS.setdefault(cog.inFile, tempfile.TemporaryDirectory())
    os.chdir(folder.name)
    os.environ.update(FIXED)
    try:
        yield
    finally:
        os.chdir(before)
        for name, value in outside.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def session(source: str) -> None:
    """Run Python statements and show them as an interactive session."""
    names: dict[str, Any] = {}
    lines = []
    with _working_folder():
        for node in ast.parse(source.strip()).body:
            statement = ast.get_source_segment(source.strip(), node) or ""
            lines.append(">>> " + statement.replace("\n", "\n... "))
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                exec(compile(ast.Interactive([node]), "session", "single"), names)
            lines += [text.getvalue().rstrip()] if text.getvalue() else []
    fence("\n".join(lines), "pycon")


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A Markdown table."""
    names = list(header)
    cog.outl("\n| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cog.outl("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |")
    cog.outl("")


def described(keys: Iterable[str], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each key with its text; a key without one is shown as such, and tests/test_docs.py refuses the page."""
    return [(f"`{key}`", texts.get(key, "UNDESCRIBED")) for key in keys]
