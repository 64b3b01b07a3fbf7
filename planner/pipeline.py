"""Seconds of one optimizer step of a pipeline from those of its stages.

Symbols: p stages, v model chunks a rank (interleaved schedule), m micro-batches, f_i + b_i forward and backward of one
micro-batch on stage i, u_i what stage i does once per step.

    step = m max_i (f_i + b_i) + (sum_i (f_i + b_i) - max_i (f_i + b_i)) / v + max_i u_i

The slowest stage sets the pace; filling and draining take the others once, 1/v of it where chunks are interleaved. With
equal stages this is (m + (p - 1) / v) (f + b) + u.

Source:
    Narayanan et al. 2021 (arXiv:2104.04473) §2.2: bubble (p - 1) / v of m. Unequal stages are our extension.
"""

from __future__ import annotations

from collections.abc import Sequence

from .parallel import Split
from .time import StepTime


def pipeline_step_s(stages: Sequence[StepTime], split: Split) -> float:
    """Seconds of one step.

    Args:
        stages: the first, one in the middle, the last; fewer where the pipeline has fewer.
        split: p and v.

    >>> from trainplan.planner.time import StepTime
    >>> stage = StepTime(forward_s=1, backward_s=2, gradient_accumulation_steps=8, boundary_s=0.5, terms=())
    >>> pipeline_step_s([stage, stage, stage], Split(pipeline=4))  # (8 + 3) * 3 + 0.5
    33.5
    """
    each = [stage.forward_s + stage.backward_s for stage in stages]
    slowest, micro_batches = max(each), stages[0].gradient_accumulation_steps
    others = sum(each) + (split.pipeline - len(each)) * each[len(each) // 2] - slowest
    return micro_batches * slowest + others / split.virtual + max(stage.boundary_s for stage in stages)
