"""Everything that a launch needs, from a plan's document: files, commands, and what a target cannot express."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..planner.emit.deepspeed import to_json
from ..planner.emit.job import Job, Whole, job_of
from ..planner.emit.launch import TRAIN
from ..planner.emit.scripts import job_script
from ..planner.emit.start import Emitted, Start
from ..planner.emit.targets import DEFAULT, TARGETS, emit_for, known_target
from ..planner.errors import InputError
from ..planner.planfile import request_of
from .rebuilding import candidate_of, decided

OFFLOADED, KEPT = "checkpointing-offload", "checkpointing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A plan's folder: its files, and each target by name."""

    files: Mapping[str, str]
    targets: Mapping[str, Emitted]


def emit(
    document: Mapping[str, Any], start: Start, targets: Sequence[str] = (DEFAULT,), *, where: str = "plan"
) -> Launch:
    """The files that start a plan.

    Args:
        document: a plan, from ``Plan.to_dict`` or ``read_plan``.
        start: the folder, and what the user says of data and weights.
        targets: names of launch targets.
        where: the plan's file, for messages.

    Raises:
        InputError: no such target, a plan whose parts disagree, or a target that cannot run it.
    """
    names = tuple(dict.fromkeys(map(known_target, targets)))
    job = job_of(document, where=where)
    if any(not TARGETS[name].runs_train_py for name in names):
        job = replace(job, whole=whole_of(document, job))
    emitted = {name: emit_for(name, job, start) for name in names}
    files = {"ds_config.json": to_json(document["ds_config"]), TRAIN: job_script(TRAIN)}
    for found in emitted.values():
        files |= found.files
    launched = {**document, "launch": next(iter(emitted.values())).command}
    return Launch(files={**files, "plan.json": to_json(launched)}, targets=emitted)


def check_readable(document: Mapping[str, Any], *, where: str) -> None:
    """What the emitted script would refuse of a file is refused before it is emitted; a plan just made needs no look.

    Raises:
        InputError: in the script's words.
    """
    from ..planner.job.train import Refused, check_plan  # here: `plan` starts without it

    try:
        check_plan(document)
    except Refused as error:
        raise InputError(f"{where}: {error}") from error


def whole_of(document: Mapping[str, Any], job: Job) -> Whole | None:
    """The plan with every layer recomputed and nothing of it in host RAM; None: the same, or it cannot be assessed."""
    c = job.checkpointing
    if not (c.partial or c.on_host):
        return None
    d, request = document["decision"], request_of(document)
    chosen = {**d, "checkpointed_layers": c.of, "strategies": [KEPT if s == OFFLOADED else s for s in d["strategies"]]}
    asked = replace(request, require=tuple(KEPT if name == OFFLOADED else name for name in request.require))
    try:
        found = candidate_of({**document, "decision": chosen}, wanted=decided(asked, chosen))
    except InputError:
        return None
    gpu = found.gpu
    return Whole(device_bytes=gpu.upper_bound_bytes, capacity_bytes=gpu.capacity_bytes, step_s=found.time.step_s)
