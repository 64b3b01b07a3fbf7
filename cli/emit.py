"""`trainplan emit PLAN`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import click

from .complete import target_names
from .plan_options import FOR

if TYPE_CHECKING:
    from ..api.emitting import Launch

PLAN, WIDTH = "plan.json", 118


@click.command(name="emit")
@click.argument("plan", type=click.Path())
@click.option(
    "--for",
    "targets",
    multiple=True,
    default=("deepspeed",),
    show_default=True,
    metavar="TARGET",
    shell_complete=target_names,
    help=f"What starts it: {FOR}; repeatable.",
)
@click.option("--data", metavar="DATA", help="What it trains on: a text file, a datasets path.  [default: $DATA]")
@click.option("--model", "weights", metavar="PATH", help="Weights and tokenizer: a folder or hub id.")
@click.option("--out", metavar="FOLDER", help="Where to write.  [default: the plan's own folder]")
def command(plan: str, targets: tuple[str, ...], data: str | None, weights: str | None, out: str | None) -> None:
    """Write everything that starts a plan: on a cluster, in a cloud, or for another trainer.

    PLAN is a plan.json or the folder that holds it. Exit 0, or 2 for a plan or target that cannot be used.
    """
    from ..api.emitting import check_readable, emit
    from ..planner.emit.start import Start
    from ..planner.planfile import read_plan

    document = read_plan(plan)
    path = Path(plan) / PLAN if Path(plan).is_dir() else Path(plan)
    folder = out if out is not None else str(path.parent)
    start = Start(folder=folder, data=as_seen(data), model=as_seen(weights))
    launch = emit(document, start, targets, where=str(path))
    check_readable(document, where=str(path))
    notes = _notes(document, path)
    files = dict(launch.files)
    if out is None or Path(out).resolve() == path.parent.resolve():
        files.pop(PLAN)  # it is what was read, and stays as it is
    written = written_to(folder, files)
    click.echo("\n\n".join([*notes, files_text(written), start_text(launch)]))


def _notes(document: Mapping[str, Any], path: Path) -> list[str]:
    """What of the plan is not as trainplan wrote it."""
    from ..planner.emit.files import changed
    from ..planner.planfile import unknown_keys

    found = (
        [f"note: {path}: changed since trainplan wrote it; its parts do not contradict each other"]
        if changed(path)
        else []
    )
    unknown = unknown_keys(document)
    return [*found, f"note: {path}: ignored, not trainplan's: {', '.join(unknown[:10])}"] if unknown else found


def as_seen(value: str | None) -> str | None:
    """A path as the job's scripts see it, which run in the job's folder; what is no path here is a name."""
    try:
        return os.path.abspath(value) if value is not None and os.path.exists(value) else value
    except ValueError:  # a null character, which Start refuses with a message
        return value


def written_to(folder: str, files: Mapping[str, str]) -> tuple[Path, ...]:
    """Write, in the order that people read.

    Raises:
        InputError: the folder cannot be written, or holds a file of somebody else's.
    """
    from ..planner.emit.files import write_files

    return write_files(Path(folder), files)


def files_text(written: tuple[Path, ...]) -> str:
    """Files written, one a line."""
    return "Files written\n" + "\n".join(f"  {path}" for path in written)


def start_text(launch: Launch) -> str:
    """The exact command of every target, what must be done before, and what it cannot express."""
    from ..planner.emit.targets import TARGETS

    return "\n\n".join(
        "\n".join(
            [
                f"Start it with {TARGETS[name].title}",
                f"  {found.command}",
                *(line for text in found.first for line in _wrapped(f"first: {text}")),
                *(line for text in found.cannot for line in _wrapped(f"not expressed: {text}")),
            ]
        )
        for name, found in launch.targets.items()
    )


def _wrapped(text: str) -> list[str]:
    """A remark below a command, within a reader's window."""
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False)


def explain_hint(folder: str) -> str:
    """Where the arithmetic of a plan is shown."""
    return f"  every line's arithmetic and source: trainplan explain {shlex.quote(folder)}"
