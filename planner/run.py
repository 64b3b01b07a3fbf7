"""A whole run: start-up, stalls, evaluation, checkpoints, failures and restarts around the optimizer steps.

    hours = start-up + M e^(R/M) (e^((tau + C)/M) - 1) U / tau

with the symbols of `renewal`: the expectation where failures come at random at a steady rate, during a restart too. U
are the steps, evaluation and stalls. tau is Daly's, or the user's; no less than a step, no more than U.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .checkpoint import Checkpoint
from .hardware import Node, Tier
from .renewal import MOST, stretched_h
from .units import HOUR_S
from .upkeep import Upkeep, upkeep
from .workload import Workload

LEAST_PROGRESS = 0.02  # a run that gets on more slowly is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Expected hours of a whole run, line by line; the lines add up to ``hours``."""

    steps_h: float
    stalls_h: float
    evaluation_h: float
    start_up_h: float
    checkpoints_h: float
    lost_h: float  # work and writing done twice
    restarts_h: float
    interval_h: float  # tau: work between checkpoints
    failures: float  # expected
    saved: Checkpoint
    kept: Upkeep

    @property
    def hours(self) -> float:
        """From start to end."""
        inside = self.steps_h + self.stalls_h + self.evaluation_h + self.checkpoints_h + self.lost_h + self.restarts_h
        return self.start_up_h + inside

    @property
    def goodput(self) -> float:
        """Share of the hours that the optimizer steps take."""
        return self.steps_h / self.hours

    @property
    def ends(self) -> bool:
        """Whether failures and restarts leave enough of the time after start-up for work and its checkpoints."""
        once_h = self.steps_h + self.stalls_h + self.evaluation_h + self.checkpoints_h
        return once_h >= LEAST_PROGRESS * (self.hours - self.start_up_h)


def bounded_interval_h(kept: Upkeep, work_h: float, step_h: float) -> float:
    """tau: no less than a step, no more than the run."""
    return min(max(kept.interval_h, step_h), work_h)


def ends(kept: Upkeep, steps: int, step_s: float) -> bool:
    """`Run.ends` without the run: work and checkpoints once, over work and checkpoints with failures.

    Args:
        kept: from `upkeep`.
        steps: optimizer steps.
        step_s: seconds of one, with its share of evaluation.
    """
    step_h = kept.work_h(step_s)
    once_h = bounded_interval_h(kept, steps * step_h, step_h) + kept.write_h
    return stretched_h(LEAST_PROGRESS, once_h, 0.0, kept.restart_h, kept.between_failures_h) <= 1


def run_hours(kept: Upkeep, steps: int, step_s: float) -> float:
    """Hours from start to end.

    Args:
        kept: from `upkeep`.
        steps: optimizer steps.
        step_s: seconds of one, with its share of evaluation.
    """
    step_h = kept.work_h(step_s)
    work_h = steps * step_h
    tau = bounded_interval_h(kept, work_h, step_h)
    return kept.start_up_h + stretched_h(work_h, tau, kept.write_h, kept.restart_h, kept.between_failures_h)


def touching_line(kept: Upkeep, steps: int, step_s: float) -> tuple[float, float]:
    """`run_hours` at one length of step, and the slope of a line from there that stays below it for longer steps.

    Formula: with one interval in the run, or one a step, d hours / d U = e^((R + tau + C)/M); between them hours / U is
    a constant. The smaller of those that follow counts; at Daly's tau they are the same number.

    Args:
        kept: from `upkeep`.
        steps: optimizer steps.
        step_s: seconds of one, with its share of evaluation.

    Returns:
        Hours, and hours per second of a step.
    """
    work_h_per_s = kept.work_h(steps)
    work_h, m = work_h_per_s * step_s, kept.between_failures_h
    step_h = work_h / steps
    tau = bounded_interval_h(kept, work_h, step_h)
    hours = kept.start_up_h + stretched_h(work_h, tau, kept.write_h, kept.restart_h, m)
    slope = math.exp(min(MOST, (kept.restart_h + tau + kept.write_h) / m))
    if kept.interval_h > step_h:
        slope = min(slope, stretched_h(1.0, kept.interval_h, kept.write_h, kept.restart_h, m))
    return hours, slope * work_h_per_s


def whole_run(
    workload: Workload, node: Node, nodes: int, tier: Tier, saved: Checkpoint, step_s: float, evaluation_s: float = 0.0
) -> Run:
    """A whole run, line by line.

    Formula: restarts are the share 1 - e^(-R/M) of all hours but the start; what is left over after work and
    checkpoints was lost; failures = hours / M.

    Args:
        workload: gives the number of steps.
        node: the machine.
        nodes: how many.
        tier: for spot interruptions.
        saved: what a checkpoint writes.
        step_s: seconds of one optimizer step.
        evaluation_s: seconds of evaluation per optimizer step, where the user said how much.
    """
    kept = upkeep(workload, node, nodes, tier, saved)
    both_s = step_s + evaluation_s
    hours = run_hours(kept, workload.steps, both_s) - kept.start_up_h
    steps_h, evaluation_h = (workload.steps * seconds / HOUR_S for seconds in (step_s, evaluation_s))
    work_h = (steps_h + evaluation_h) * (1 + kept.share)
    tau = bounded_interval_h(kept, work_h, kept.work_h(both_s))
    checkpoints_h = kept.write_h * work_h / tau
    restarts_h = -math.expm1(-kept.restart_h / kept.between_failures_h) * hours
    return Run(
        steps_h=steps_h,
        stalls_h=(steps_h + evaluation_h) * (kept.share - kept.evaluation_share),
        evaluation_h=evaluation_h + (steps_h + evaluation_h) * kept.evaluation_share,
        start_up_h=kept.start_up_h,
        checkpoints_h=checkpoints_h,
        lost_h=max(0.0, hours - work_h - checkpoints_h - restarts_h),
        restarts_h=restarts_h,
        interval_h=tau,
        failures=hours / kept.between_failures_h,
        saved=saved,
        kept=kept,
    )
