"""The plan: the cheapest way to train a model within a request, or why there is none."""

from __future__ import annotations

from typing import Any

from ..planner.calibrate.used import profile_warnings
from ..planner.day_sooner import day_sooner
from ..planner.decide import alternatives, decide, frontier
from ..planner.errors import NoPlan
from ..planner.model import Model
from ..planner.plan import Plan, warnings_for
from ..planner.request import Request
from ..planner.stack_rows import stack_rows
from .asking import as_model, request
from .searching import Progress, search, silent


def plan(model: str | Model, *, progress: Progress = silent, wanted: Request | None = None, **options: Any) -> Plan:
    """The cheapest way to train a model within the request.

    Args:
        model: catalog name, config.json, folder, hub id, or a loaded model.
        progress: called with a line of text now and then.
        wanted: a finished request, instead of options.
        options: as on the command line: gpus="a100-80", budget=250_000 or "cheapest", method="lora", tokens="2B",
            seq_len=8192, global_batch=512, deadline="14d", require=("zero-3",), kernels="liger", compile=True,
            checkpoint_every="2h", storage_gbps=50.0, grid_kgco2_per_kwh=0.06, ...

    Raises:
        InputError: the request contradicts itself.
        NoPlan: nothing fits; the message says what is short and the cheapest way out.

    >>> import trainplan
    >>> trainplan.plan("llama-3-8b", gpus="h100", method="lora").candidate.method.value
    'lora'
    """
    loaded = as_model(model)
    wanted = (wanted or request(**options)).suited(loaded)
    searched = search(loaded, wanted, progress)
    progress(f"{len(searched.space.columns)} columns left; solving")
    candidate, choice = decide(searched)
    return Plan(
        request=wanted,
        candidate=candidate,
        certificate=choice.certificate,
        alternatives=alternatives(searched, candidate),
        frontier=frontier(searched, candidate),
        rows=stack_rows(candidate),
        dropped=dict(searched.space.dropped),
        warnings=(*warnings_for(candidate), *profile_warnings(wanted, candidate.offer.node.gpu)),
        day_sooner=day_sooner(searched, candidate),
    )


def no_plan(error: NoPlan) -> dict[str, Any]:
    """The JSON document of a NoPlan."""
    return getattr(error, "document", {"status": "no_plan", "message": str(error)})
