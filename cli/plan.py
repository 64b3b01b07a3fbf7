"""`trainplan plan`, the same as `trainplan` with options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from .emit import as_seen, explain_hint, files_text, start_text, written_to
from .plan_options import Sectioned, model_from, plan_options, request_from

if TYPE_CHECKING:
    from ..api.emitting import Launch


@click.command(name="plan", cls=Sectioned)
@plan_options
def command(**options: Any) -> None:
    """Find the cheapest plan: GPUs, strategy, hours, dollars, and the files to start it.

    Exit 0 with a plan, 2 for a wrong input, 3 where nothing fits, 4 where the solver failed.
    """
    run(**options)


def run(
    *,
    out: str | None,
    as_json: bool,
    targets: tuple[str, ...],
    data: str | None,
    weights: str | None,
    **options: Any,
) -> None:
    """Plan, write, print."""
    import json

    from ..api import no_plan, plan
    from ..planner.emit.targets import known_target
    from ..planner.errors import NoPlan
    from ..planner.report.text import plan_text
    from .progress import progress

    names = tuple(map(known_target, targets))
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
    if folder is None:
        click.echo(json.dumps(document, indent=2))
        return
    launch = _launch(document, folder, names, data, weights)
    written = written_to(folder, launch.files)
    document["launch"] = next(iter(launch.targets.values())).command
    files = f"{files_text(written)}\n{explain_hint(folder)}"
    report = f"{plan_text(document)}\n\n{files}\n\n{start_text(launch)}"
    click.echo(json.dumps(document, indent=2) if as_json else report)


def _launch(
    document: dict[str, Any], folder: str, targets: tuple[str, ...], data: str | None, weights: str | None
) -> Launch:
    """The files of a plan and of what starts it.

    Raises:
        InputError: the folder is no folder's name, or a target cannot run the plan.
    """
    from ..api.emitting import emit
    from ..planner.emit.start import Start

    return emit(document, Start(folder=folder, data=as_seen(data), model=as_seen(weights)), targets)


def _slug(name: str) -> str:
    """A name as a folder."""
    return re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip("-.")[:100] or "model"
