"""`trainplan plan`, the same as `trainplan` with options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from .plan_options import model_from, plan_options, request_from


@click.command(name="plan")
@plan_options()
def command(**options: Any) -> None:
    """Find the cheapest plan: GPUs, strategy, hours, dollars, and the files to start it."""
    run(**options)


def run(*, out: str | None, as_json: bool, **options: Any) -> None:
    """Plan, print, write."""
    import json

    from ..api import no_plan, plan
    from ..planner.errors import NoPlan
    from .progress import progress

    model = model_from(options)
    wanted = request_from(options)
    try:
        with progress() as show:
            found = plan(model, wanted=wanted, progress=show)
    except NoPlan as error:
        if as_json:
            click.echo(json.dumps(no_plan(error), indent=2))
        raise
    document = found.to_dict()
    folder = out if out is not None or as_json else f"plans/{_slug(found.candidate.setting.model.name)}"
    written = _write(document, folder) if folder is not None else ()
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    from ..planner.report.text import plan_text

    click.echo(plan_text(document))
    click.echo("\nFiles\n" + "\n".join(f"  {path}" for path in written))
    click.echo(f"\nStart it (train.py is your training script)\n  {document['launch']}")


def _write(document: dict[str, Any], folder: str) -> tuple[Path, ...]:
    """ds_config.json and plan.json; the launch command names the former."""
    from ..planner.emit.deepspeed import to_json
    from ..planner.emit.files import write_files
    from ..planner.emit.launch import launch_command

    where = Path(folder)
    document["launch"] = launch_command(
        nodes=document["decision"]["nodes"],
        gpus_per_node=document["decision"]["gpus_per_node"],
        config=str(where / "ds_config.json"),
    )
    return write_files(where, {"ds_config.json": to_json(document["ds_config"]), "plan.json": to_json(document)})


def _slug(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.") or "model"
