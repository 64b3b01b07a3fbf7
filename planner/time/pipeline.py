"""One optimizer step of a pipeline from the steps of its stages.

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
from dataclasses import replace

from ..parallel import Split
from .grounds import Ground
from .step import StepTime, TimeTerm

GROUND = Ground("the schedule", "derived", "Narayanan et al. 2021 (arXiv:2104.04473) §2.2")
FILL = "filling and draining the pipeline"


def pipelined(stages: Sequence[StepTime], split: Split) -> StepTime:
    """The slowest stage's step, lengthened by what the others take to fill and drain.

    Args:
        stages: the first, one in the middle, the last; fewer where the pipeline has fewer.
        split: p and v.

    >>> from trainplan.planner.time import StepTime
    >>> stage = StepTime(forward_s=1, backward_s=2, gradient_accumulation_steps=8, boundary_s=0.5, terms=())
    >>> pipelined([stage, stage, stage], Split(pipeline=4)).step_s  # (8 + 3) * 3 + 0.5
    33.5
    """
    if split.pipeline == 1:
        return stages[0]
    each = [stage.forward_s + stage.backward_s for stage in stages]
    slowest = max(range(len(stages)), key=each.__getitem__)
    others = sum(each) + (split.pipeline - len(each)) * each[len(each) // 2] - each[slowest]
    fill = others / split.virtual
    late = max(stage.boundary_s for stage in stages) - stages[slowest].boundary_s
    term = TimeTerm(FILL, fill + late, fill + late, "pipeline", GROUND)
    chosen = stages[slowest]
    return replace(chosen, boundary_s=chosen.boundary_s + late, fill_s=fill, terms=(*chosen.terms, term))
