"""`trainplan sensitivity`: does the decision hold if what it assumes turns out otherwise?"""

from __future__ import annotations

from typing import Any

import click

from .plan_options import CHOICE, FLEET, JOB, JSON, MACHINES, PRICES, RUN, STRATEGIES, WHAT, Sectioned, applied


@click.command(name="sensitivity", cls=Sectioned)
@applied(WHAT, JOB, MACHINES, FLEET, PRICES, CHOICE, RUN, STRATEGIES, JSON)
def command(as_json: bool, **options: Any) -> None:
    """Plan again with other rates, prices, tokens and failures: does the decision hold, and what would keeping it cost?

    Every case is solved again with its own inputs, none is scaled.
    """
    from ..api import sensitivity
    from ..planner.report.sensitivity_text import sensitivity_text
    from .ask import answer

    answer(sensitivity, sensitivity_text, options, as_json=as_json)
