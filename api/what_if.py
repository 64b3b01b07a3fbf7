"""Questions beside the plan: does it hold if things turn out otherwise, would other terms pay, what would money buy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..planner.candidate import Candidate
from ..planner.decide import Search, decide
from ..planner.errors import InputError
from ..planner.hardware import Tier
from ..planner.model import Model
from ..planner.request import Request
from ..planner.stress import Stress
from ..planner.units import HOUR_S, parse_duration_s
from .asking import as_model, request
from .searching import Progress, search, silent

if TYPE_CHECKING:
    from ..planner.afford import Afford
    from ..planner.breakeven import BreakEvens
    from ..planner.sensitivity import Sensitivity


def sensitivity(
    model: str | Model, *, progress: Progress = silent, wanted: Request | None = None, **options: Any
) -> Sensitivity:
    """Whether the decision holds if rates, prices, tokens or failures turn out otherwise; each case is solved again.

    Args:
        model, progress, wanted, options: as in `plan`.

    Raises:
        InputError: the request contradicts itself.
        NoPlan: nothing fits as assumed.

    >>> import trainplan
    >>> found = trainplan.sensitivity("llama-3-8b", gpus="8xa100-80", method="lora")
    >>> [(o.scenario.label, o.holds) for o in found.outcomes if o.scenario.name == "price-up"]
    [('price +20 %', True)]
    """
    from ..planner.sensitivity import sensitivity as run

    loaded = as_model(model)
    wanted = (wanted or request(**options)).suited(loaded)
    searched = search(loaded, wanted, progress, wanted.allowed)

    def searcher(other: Request, stress: Stress, most_usd: float) -> Search:
        return search(loaded, other, silent, other.allowed, stress, most_usd=most_usd)

    return run(searched, searcher, progress)


def breakeven(
    model: str | Model,
    *,
    spot_usd_per_gpu_hour: float | None = None,
    reserved_usd_per_gpu_hour: float | None = None,
    term: str | None = None,
    capital: float | None = None,
    years: float | None = None,
    power_kw: float | None = None,
    usd_per_kwh: float | None = None,
    hosting_usd: float | None = None,
    progress: Progress = silent,
    wanted: Request | None = None,
    **options: Any,
) -> BreakEvens:
    """When spot machines, a commitment or machines of one's own cost less than the plan.

    Args:
        model, progress, wanted, options: as in `plan`.
        spot_usd_per_gpu_hour: the plan's machines on spot, where the catalog does not know it.
        reserved_usd_per_gpu_hour: the plan's machines under a commitment, likewise.
        term: of the commitment, such as "90d"; where left out the price list's, or a year.
        capital: USD for a node of one's own; ``pue`` and the next three are needed too.
        years: until it is worth nothing.
        power_kw: kW drawn by a node while it trains.
        usd_per_kwh: USD.
        hosting_usd: space, staff, network: USD per node and year.

    Raises:
        InputError: the request contradicts itself, or a price is out of range.
        NoPlan: nothing fits.

    >>> import trainplan
    >>> found = trainplan.breakeven("llama-3-8b", gpus="8xh100", cloud="aws", reserved_usd_per_gpu_hour=3)
    >>> [(row.name, row.pays) for row in found.rows]
    [('spot', True), ('reserved', False), ('buying', None)]
    """
    from ..planner.breakeven import BreakEvens, break_evens
    from ..planner.quotes import Quotes

    loaded = as_model(model)
    wanted = (wanted or request(**options)).suited(loaded)
    quotes = Quotes(
        spot_usd_per_gpu_hour=spot_usd_per_gpu_hour,
        reserved_usd_per_gpu_hour=reserved_usd_per_gpu_hour,
        term_h=None if term is None else parse_duration_s(term, where="--term") / HOUR_S,
        capital=capital,
        years=years,
        power_kw=power_kw,
        pue=wanted.pue,
        usd_per_kwh=usd_per_kwh,
        hosting_usd=hosting_usd,
    )
    quotes.check()
    chosen = decide(search(loaded, wanted, progress, wanted.allowed))[0]
    rows = break_evens(chosen, wanted, quotes, _on_spot(loaded, wanted, chosen))
    return BreakEvens(request=wanted, candidate=chosen, rows=rows)


def _on_spot(model: Model, wanted: Request, chosen: Candidate) -> Candidate | None:
    """The cheapest plan of the same method on spot machines; None where the catalog has none that fits."""
    if wanted.tier is Tier.SPOT or wanted.owns:
        return None
    asked = replace(wanted, tier=Tier.SPOT, methods=(chosen.method,), budget=None)
    try:
        found = search(model, asked, silent, asked.allowed).cheapest()
    except InputError:  # no spot offers of these machines
        return None
    return found[0] if found else None


def afford(
    model: str | Model | None = None, *, progress: Progress = silent, wanted: Request | None = None, **options: Any
) -> Afford:
    """What a budget buys: the largest model of the catalog; of a given model the most tokens, the longest context.

    Args:
        model: as in `plan`; None asks for the largest model.
        progress, wanted: as in `plan`.
        options: as in `plan`; ``budget`` is needed. Without ``tokens`` the largest model that is trained whole gets 20
            tokens per parameter (configs/rules.toml).

    Raises:
        InputError: no budget, or the request contradicts itself.

    >>> import trainplan
    >>> found = trainplan.afford("SmolLM2-135M", gpus="1xh100", budget=5, method="full", seq_len=2048)
    >>> [answer.question for answer in found.answers]
    ['most tokens', 'longest context']
    """
    from ..planner.afford import afford_job, afford_model, check
    from ..planner.models import catalog as known_models
    from ..planner.models import catalog_model

    wanted = wanted or request(**options)
    check(wanted)

    def searcher(of: Model, asked: Request, within_limits: bool) -> Search:
        most_usd, most_hours = (asked.budget_usd, asked.deadline_s / HOUR_S) if within_limits else (math.inf, math.inf)
        return search(of, asked, silent, asked.allowed, most_usd=most_usd, most_hours=most_hours)

    if model is None:
        return afford_model([catalog_model(name) for name in known_models()], wanted, searcher, progress)
    return afford_job(as_model(model), wanted, searcher, progress)
