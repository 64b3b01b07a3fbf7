"""`trainplan afford --budget 50000 --gpus h100 --deadline 30d`: what a budget buys."""

from __future__ import annotations

from typing import Any

import click

from .plan_options import BY_HAND, CHOICE, FLEET, JOB, JSON, MACHINES, PRICES, RUN, STRATEGIES, WHAT, Sectioned, applied


@click.command(name="afford", cls=Sectioned)
@applied(WHAT, JOB, MACHINES, FLEET, PRICES, CHOICE, RUN, STRATEGIES, JSON)
def command(as_json: bool, **options: Any) -> None:
    """Say what a budget and a deadline buy, under each method allowed (any, unless --method names some).

    Without a model: the largest of the catalog. With one: the most tokens, and the longest context.
    """
    import json

    from ..api import afford
    from ..planner.report.afford_text import afford_text
    from .plan_options import model_from, request_from
    from .progress import progress

    named = any(options[name] is not None for name in ("model", *BY_HAND))
    model = model_from(options).model if named else options.pop("model")
    for name in BY_HAND:
        options.pop(name, None)
    wanted = request_from(options)
    with progress() as show:
        document = afford(model, wanted=wanted, progress=show).to_dict()
    click.echo(json.dumps(document, indent=2) if as_json else afford_text(document))
