"""One configuration, written down instead of searched for: its layers, shares, setting and machine, assessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..planner.candidate import Candidate, assess, let
from ..planner.errors import InputError
from ..planner.hardware import Offer
from ..planner.machines import machines_for
from ..planner.model import Model
from ..planner.parallel import WHOLE, Split
from ..planner.request import Request
from ..planner.run import LEAST_PROGRESS
from ..planner.transform import Setting, Stack
from ..planner.units import HOUR_S, duration
from ..planner.workload import Method
from ..strategies.model_parallel import check_split, cut
from ..strategies.offload_optimizer import GROUPS
from ..strategies.space import one_family
from .searching import choices_of


def offload_groups(ratio: float) -> int:
    """Groups of the optimizer on the host, of GROUPS, for a share of it."""
    if not (isinstance(ratio, int | float) and 0 < ratio <= 1):
        raise InputError(f"--offload-ratio: out of range, got {ratio!r}; allowed is above 0 up to 1; for example 0.6")
    return max(1, round(ratio * GROUPS))


def checkpointed(text: str | int, model: Model) -> tuple[int, bool]:
    """Layers, and whether checkpoints go to the host."""
    word = str(text).strip().lower()
    on_host = word.endswith("-offload")
    word = word.removesuffix("-offload")
    if word in ("none", "full"):
        return (model.layers if word == "full" else 0), on_host
    if not word.isdigit() or not 0 <= int(word) <= model.layers:
        raise InputError(
            f"--checkpointing: not a number of layers, got {text!r}; allowed are none, full, or 0 to {model.layers}; "
            f"-offload may follow"
        )
    return int(word), on_host


def where_kept(layers: int, on_host: bool) -> str | None:
    """Where checkpoints lie; None where no layer is checkpointed."""
    return ("host" if on_host else "gpu") if layers else None


def assessed(
    model: Model,
    wanted: Request,
    facts: dict[str, Any],
    *,
    layers: int,
    groups: int,
    micro_batch: int,
    offer: str = "",
    split: Split = WHOLE,
) -> Candidate:
    """Assess one configuration on the offer named, or on the cheapest, whose nodes make up the count.

    Raises:
        InputError: no machine, a batch that does not divide, or failures that never let the run end.
    """
    if wanted.gpu_count is None:
        raise InputError(
            f"--gpus: no count, got {','.join(wanted.gpus)}; an estimate needs a type and a count; write --gpus 8xh100"
        )
    check_split(model, split, wanted.seq_len, wanted.gpu_count)
    wanted.check(model, replica_gpus=split.ranks)
    method = wanted.methods[0] if wanted.methods else Method.FULL
    family = one_family(facts, replace(choices_of(wanted, model), methods=(method,)), model)
    machines = machines_for(wanted, wanted.gpu_count, preferred=offer)
    stack = family.at(layers, groups)
    return best_of(machines, stack, model, wanted, method, family.zero_stage, micro_batch=micro_batch, split=split)


def best_of(
    machines: Sequence[Offer],
    stack: Stack,
    model: Model,
    wanted: Request,
    method: Method,
    zero_stage: int,
    *,
    micro_batch: int,
    split: Split = WHOLE,
) -> Candidate:
    """One stack on each machine; of those that are let for so long, or else of all, the cheapest.

    Raises:
        InputError: a batch that does not divide, a stack that the setting refuses, or a run that never ends.
    """

    def on(machine: Offer) -> Candidate:
        setting = _setting(model, wanted, machine, micro_batch, split)
        whole = cut(stack, setting, machine.node)
        refusals = [r for s in whole.strategies if (r := s.accepts(setting))]
        if refusals:
            raise InputError(f"strategies: {refusals[0]}; choose another")
        candidate = assess(machine, whole, setting, method=method, zero_stage=zero_stage)
        _check_end(candidate)
        return candidate

    def broken_then_dollars(c: Candidate) -> tuple[int, float]:
        return sum(1 for limit in let(c) if not limit.holds), c.cost.usd

    return min((on(machine) for machine in machines), key=broken_then_dollars)


def _setting(model: Model, wanted: Request, offer: Offer, micro_batch: int, split: Split) -> Setting:
    gpus = wanted.gpu_count or 0
    copies = gpus // split.ranks
    if not 1 <= micro_batch <= 2**16 or wanted.sequences % (micro_batch * copies):
        fits = max(1, round(wanted.sequences / (micro_batch * copies))) * max(1, micro_batch) * copies
        what = f"{copies} GPUs" if split == WHOLE else f"{copies} data-parallel ranks"
        raise InputError(
            f"global batch {wanted.sequences} is not micro-batch {micro_batch} x {what} x n; "
            f"use for example --global-batch {fits}"
        )
    return Setting(
        workload=wanted.workload(model),
        nodes=gpus // offer.node.gpus,
        ranks_per_node=offer.node.gpus,
        micro_batch=micro_batch,
        nvme_path=wanted.nvme_path,
        live=offer.node.gpu.calibration.live,
        split=WHOLE if split == WHOLE else split,  # the search asks "is WHOLE", a thousand times a second
    )


def _check_end(candidate: Candidate) -> None:
    """Whether failures let the run end.

    Raises:
        InputError: they do not.
    """
    run = candidate.cost.run
    if run.ends:
        return
    often, back = (duration(h * HOUR_S) for h in (run.kept.between_failures_h, run.kept.restart_h))
    raise InputError(
        f"the run never ends: {candidate.gpus} GPUs fail every {often} and take {back} to be back; allowed is "
        f"{LEAST_PROGRESS:.0%} of the time for work, and more; use fewer GPUs, or other --mtbf-gpu-hours, "
        "--storage-gbps or --checkpoint-every"
    )
