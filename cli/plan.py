"""`trainplan plan`, the same as `trainplan` with options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click

from .plan_options import Sectioned, model_from, plan_options, request_from


@click.command(name="plan", cls=Sectioned)
@plan_options
def command(**options: Any) -> None:
    """Find the cheapest plan: GPUs, strategy, hours, dollars, and the files to start it.

    Exit 0 with a plan, 2 for a wrong input, 3 where nothing fits, 4 where the solver failed.
    """
    run(**options)


def run(*, out: str | None, as_json: bool, **options: Any) -> None:
    """Plan, write, print."""
    import json

    from ..api import no_plan, plan
    from ..planner.errors import NoPlan
    from ..planner.report.text import plan_text
    from .progress import progress

    found = model_from(options)
    wanted = request_from(options)
    try:
        with progress() as show:
            document = plan(found.model, wanted=wanted, progress=show).to_dict()
    except NoPlan as error:
        if as_json:
            click.echo(json.dumps(no_plan(error), indent=2))
        raise
    document["model"]["note"] = found.note
    folder = out if out is not None or as_json else f"plans/{_slug(found.model.name)}"
    written = _write(document, folder) if folder is not None else ()
    click.echo(json.dumps(document, indent=2) if as_json else f"{plan_text(document)}\n\n{_start(document, written)}")


def _start(document: dict[str, Any], written: tuple[Path, ...]) -> str:
    """Files written, and the exact command."""
    d = document["decision"]
    hostfile = f"; hostfile lists {d['nodes']} nodes as NAME slots={d['gpus_per_node']}" if d["nodes"] > 1 else ""
    files = "\n".join(f"  {path}" for path in written)
    explain = f"  every line's arithmetic and source: trainplan explain {shlex.quote(str(written[0].parent))}"
    start = f"Start it (train.py is your training script{hostfile})\n  {document['launch']}"
    return f"Files written\n{files}\n{explain}\n\n{start}"


def _write(document: dict[str, Any], folder: str) -> tuple[Path, ...]:
    """ds_config.json and plan.json; the launch command names the former.

    Raises:
        InputError: the folder is no folder's name, or cannot be written.
    """
    from ..planner.emit.deepspeed import to_json
    from ..planner.emit.files import write_files
    from ..planner.emit.launch import launch_command
    from ..planner.errors import InputError

    if not folder.strip() or not folder.isprintable():
        raise InputError(
            f"--out: not a folder's name, got {folder[:40]!r}; any other is allowed; write for example --out plans/x"
        )
    where, d = Path(folder), document["decision"]
    document["launch"] = launch_command(
        nodes=d["nodes"], gpus_per_node=d["gpus_per_node"], config=str(where / "ds_config.json")
    )
    return write_files(where, {"ds_config.json": to_json(document["ds_config"]), "plan.json": to_json(document)})


def _slug(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.")[:100] or "model"
