"""From seconds per step to hours and dollars of a whole run."""

from __future__ import annotations

from dataclasses import dataclass

from .efficiency import value
from .hardware import Offer, Tier
from .units import HOUR_S
from .workload import Workload

TOKENS_PER_PRICE = 1e6  # tokens are priced by the million


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run takes and costs; nodes are billed whole, idle GPUs included."""

    hours: float
    node_hours: float
    gpu_hours: float
    usd: float
    usd_per_million_tokens: float


def goodput(
    gpus: int, tier: Tier = Tier.ON_DEMAND, *, failures: float = 1.0, interruption_h: float | None = None
) -> float:
    """Share of the billed time that trains.

    Formula: (1 - overhead) / (1 + G lost / MTBF + spot), with G GPUs, a mean time between failures in GPU-hours, the
    hours lost per failure, and on spot machines hours lost / hours between interruptions. The checkpoint interval is
    taken to follow the failure rate, so that the hours lost per failure stay the same; this is an assumption.

    Args:
        gpus: G, in the whole cluster.
        tier: spot machines are interrupted.
        failures: how often machines fail and are taken away, as a multiple of what is assumed.
        interruption_h: hours between interruptions of a spot cluster; None: as assumed.

    Source:
        configs/efficiency.toml, [goodput] and [spot].

    >>> goodput(8) > goodput(1024) > goodput(16384), goodput(8) > goodput(8, Tier.SPOT)
    (True, True)
    """
    lost = gpus * value("goodput", "hours_lost_per_failure") / value("goodput", "gpu_hours_between_failures")
    if tier is Tier.SPOT:
        between_h = value("spot", "hours_between_interruptions") if interruption_h is None else interruption_h
        lost += value("spot", "hours_lost_per_interruption") / between_h
    return (1.0 - value("goodput", "overhead")) / (1.0 + failures * lost)


def run_hours(
    workload: Workload, step_s: float, *, gpus: int, tier: Tier = Tier.ON_DEMAND, failures: float = 1.0
) -> float:
    """Hours from start to end: steps * step_s / goodput.

    Args:
        workload: gives the number of optimizer steps.
        step_s: seconds of one optimizer step.
        gpus: in the whole cluster, for failures.
        tier: for interruptions.
        failures: how often, as a multiple of what is assumed.
    """
    return workload.steps * step_s / HOUR_S / goodput(gpus, tier, failures=failures)


def run_cost_usd(offer: Offer, nodes: int, hours: float) -> float:
    """Dollars for whole nodes over the whole run."""
    return offer.usd_per_hour * nodes * hours


def run_cost(workload: Workload, offer: Offer, nodes: int, step_s: float) -> Cost:
    """Hours and dollars of a workload on so many nodes of an offer.

    Args:
        workload: what is trained.
        offer: the node and its price.
        nodes: whole nodes, all billed until the end.
        step_s: seconds of one optimizer step.
    """
    gpus = nodes * offer.node.gpus
    hours = run_hours(workload, step_s, gpus=gpus, tier=offer.tier, failures=offer.failures)
    usd = run_cost_usd(offer, nodes, hours)
    return Cost(
        hours=hours,
        node_hours=nodes * hours,
        gpu_hours=gpus * hours,
        usd=usd,
        usd_per_million_tokens=usd / workload.tokens * TOKENS_PER_PRICE,
    )
