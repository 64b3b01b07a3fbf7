"""What the commands that answer a question about a request share: read it, show progress, print text or JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .plan_options import model_from, request_from


def answer(
    ask: Callable[..., Any],
    text: Callable[[dict[str, Any]], str],
    options: dict[str, Any],
    *,
    as_json: bool,
    **more: Any,
) -> None:
    """Ask the API about the model and the request of the options, and print what it says.

    Args:
        ask: a function of the API whose answer has ``to_dict``.
        text: the document as people read it.
        options: of the request.
        as_json: print the document instead; also the document of a request that has no plan.
        more: arguments of ``ask``.
    """
    import json

    from ..api import no_plan
    from ..planner.errors import NoPlan
    from .progress import progress

    found = model_from(options)
    wanted = request_from(options)
    try:
        with progress() as show:
            document = ask(found.model, wanted=wanted, progress=show, **more).to_dict()
    except NoPlan as error:
        if as_json:
            click.echo(json.dumps(no_plan(error), indent=2))
        raise
    click.echo(json.dumps(document, indent=2) if as_json else text(document))
