"""`trainplan verify PLAN`: a few real steps of a plan on the machine at hand, compared with its ledger."""

from __future__ import annotations

from typing import Any

import click

from .progress import progress


@click.command(name="verify")
@click.argument("plan", type=click.Path())
@click.option("--steps", type=click.IntRange(3, 100), default=3, show_default=True, metavar="N", help="Real steps.")
@click.option(
    "--processes", type=click.IntRange(1, 64), metavar="N", help="Ranks. [default: one a GPU, or two on a CPU]"
)
@click.option("--layers", type=click.IntRange(1), metavar="N", help="Layers of the model. [default: as many as fit]")
@click.option(
    "--device", type=click.Choice(("auto", "cpu", "cuda")), default="auto", show_default=True, help="Where to run."
)
@click.option("--model", metavar="MODEL", help="Another model in the plan's place: config.json, folder or name.")
@click.option("--all", "every", is_flag=True, help="Print every line at every moment.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document alone.")
def command(plan: str, *, every: bool, as_json: bool, **options: Any) -> int:
    """Run a few real steps of a plan here, and compare memory line by line with what it says.

    PLAN is a plan.json or the folder that holds it. The model is as deep as this machine holds, its weights are random,
    and nothing is downloaded. Needs torch and DeepSpeed: pip install 'trainplan[train]'. Exit code 6: a line is off.
    """
    import json

    from ..api import verify
    from ..planner.report.verification_text import verification_text
    from ..planner.verify.outcome import LINE_OFF

    with progress() as show:
        found = verify(plan, progress=show, **options)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else verification_text(found.to_dict(), every=every))
    return 0 if found.passed else LINE_OFF
