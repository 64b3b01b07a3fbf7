"""`trainplan breakeven`: when another way to pay costs less than the plan's machines."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from .plan_options import (
    CHOICE,
    EXTRAS,
    FLEET,
    JOB,
    JSON,
    MACHINES,
    PRICE_LIST,
    RUN,
    STRATEGIES,
    WHAT,
    Sectioned,
    SectionedOption,
    applied,
)

_quote = partial(click.option, cls=SectionedOption, section="Prices that the catalog does not know")
QUOTES = (
    _quote("--spot-usd-per-gpu-hour", type=float, metavar="USD", help="The plan's machines on spot."),
    _quote("--reserved-usd-per-gpu-hour", type=float, metavar="USD", help="The plan's machines under a commitment."),
    _quote("--term", metavar="TIME", help="Of the commitment: 90d, 52w.  [default: the price list's, or a year]"),
    _quote("--capital", type=float, metavar="USD", help="A node of your own; --pue and the next three too."),
    _quote("--years", type=float, metavar="N", help="Until it is worth nothing."),
    _quote("--power-kw", type=float, metavar="KW", help="Power of a node while it trains."),
    _quote("--usd-per-kwh", type=float, metavar="USD", help="Price of a kWh."),
    _quote("--hosting-usd", type=float, metavar="USD", help="Space, staff, network: USD per node and year."),
)
QUOTED = (
    "spot_usd_per_gpu_hour",
    "reserved_usd_per_gpu_hour",
    "term",
    "capital",
    "years",
    "power_kw",
    "usd_per_kwh",
    "hosting_usd",
)


@click.command(name="breakeven", cls=Sectioned)
@applied(WHAT, JOB, MACHINES, FLEET, PRICE_LIST, EXTRAS, CHOICE, RUN, STRATEGIES, QUOTES, JSON)
def command(as_json: bool, **options: Any) -> None:
    """Say when spot machines, a commitment or machines of your own cost less than the plan.

    What has no price is unknown, and the answer names the option that states it.
    """
    from ..api import breakeven
    from ..planner.report.breakeven_text import breakeven_text
    from .ask import answer

    quotes = {name: options.pop(name) for name in QUOTED}
    answer(breakeven, breakeven_text, options, as_json=as_json, **quotes)
