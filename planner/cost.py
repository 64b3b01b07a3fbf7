"""From seconds per step to hours, dollars and electricity of a whole run."""

from __future__ import annotations

from dataclasses import dataclass

from .billing import bill_usd, least_usd
from .checkpoint import Checkpoint
from .energy import run_kgco2, run_kwh
from .hardware import Offer
from .run import Run, ends, touching_line, whole_run
from .units import HOUR_S
from .upkeep import upkeep
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
    kwh: float | None  # None: the GPU's power is unknown
    kgco2: float | None  # None: so is this, or the user gave no grid factor
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Dollars and seconds of a run as a line in the seconds of a step: fixed + per_s x step_s."""

    usd: float
    usd_per_s: float
    run_s: float
    run_s_per_s: float
    ends: bool = True  # failures let the run end

    def usd_at(self, step_s: float) -> float:
        """Dollars for a step of so many seconds."""
        return self.usd + self.usd_per_s * step_s

    def run_s_at(self, step_s: float) -> float:
        """Seconds of the run for a step of so many seconds."""
        return self.run_s + self.run_s_per_s * step_s


def run_cost_usd(offer: Offer, nodes: int, hours: float) -> float:
    """Dollars for whole nodes over the whole run, under the offer's terms."""
    return bill_usd(offer, nodes, hours)


def run_cost(
    workload: Workload, offer: Offer, nodes: int, step_s: float, saved: Checkpoint, evaluation_s: float = 0.0
) -> Cost:
    """Hours, dollars and electricity of a workload on so many nodes of an offer.

    Args:
        workload: what is trained.
        offer: the node and its price.
        nodes: whole nodes, all billed until the end.
        step_s: seconds of one optimizer step.
        saved: what a checkpoint writes.
        evaluation_s: seconds of evaluation per optimizer step, where the user said how much.
    """
    gpus = nodes * offer.node.gpus
    run = whole_run(workload, offer.node, nodes, offer.tier, saved, step_s, evaluation_s)
    usd = run_cost_usd(offer, nodes, run.hours)
    each = workload.run.power_kw_per_node
    kwh = run_kwh(offer.node.gpu, gpus, run.hours, workload.run.pue, None if each is None else nodes * each)
    return Cost(
        hours=run.hours,
        node_hours=nodes * run.hours,
        gpu_hours=gpus * run.hours,
        usd=usd,
        usd_per_million_tokens=usd / workload.tokens * TOKENS_PER_PRICE,
        kwh=kwh,
        kgco2=run_kgco2(kwh, workload.run.grid_kgco2_per_kwh),
        run=run,
    )


def least_line(workload: Workload, offer: Offer, nodes: int) -> Line:
    """A line below the bill of every run on so many nodes: nothing is written, every interval is short."""
    kept = upkeep(workload, offer.node, nodes, offer.tier)
    rate = kept.least_stretch * (1 + kept.share) * workload.steps / HOUR_S
    return _line(offer, nodes, kept.start_up_h, rate)


def tangent(workload: Workload, offer: Offer, nodes: int, saved: Checkpoint, step_s: float) -> Line:
    """The line that touches the bill at one length of step and is below it for all longer ones.

    Args:
        workload: what is trained.
        offer: the node and its price.
        nodes: whole nodes.
        saved: what a checkpoint writes.
        step_s: seconds of one step with its share of evaluation, where the line touches.
    """
    kept = upkeep(workload, offer.node, nodes, offer.tier, saved)
    hours, slope = touching_line(kept, workload.steps, step_s)
    return _line(offer, nodes, hours - slope * step_s, slope, ends=ends(kept, workload.steps, step_s))


def _line(offer: Offer, nodes: int, fixed_h: float, per_s_h: float, *, ends: bool = True) -> Line:
    usd_per_h = least_usd(offer, nodes, 1.0)  # proportional; what is billed in steps is never below
    return Line(
        usd=usd_per_h * fixed_h,
        usd_per_s=usd_per_h * per_s_h,
        run_s=fixed_h * HOUR_S,
        run_s_per_s=per_s_h * HOUR_S,
        ends=ends,
    )
