"""`trainplan estimate`: one fixed configuration."""

from __future__ import annotations

from typing import Any

import click

from .plan_options import (
    CONFIGURATION,
    JOB,
    JSON,
    MACHINES,
    PRICES,
    RUN,
    STRATEGIES,
    WHAT,
    Sectioned,
    applied,
    model_from,
    request_from,
)

FIXED = (
    "zero", "micro_batch", "checkpointing", "offload_optimizer", "offload_ratio", "offload_parameters",
    "tensor_parallel", "sequence_parallel", "pipeline_parallel", "pipeline_chunks", "context_parallel",
    "expert_parallel",
)  # fmt: skip


@click.command(name="estimate", cls=Sectioned)
@applied(WHAT, JOB, MACHINES, PRICES, CONFIGURATION, RUN, STRATEGIES, JSON)
def command(*, as_json: bool, **options: Any) -> None:
    """Judge one fixed configuration: how much memory, how long, what it costs, does it fit.

    Exit 0 whether it fits or not; the answer says which.
    """
    import json

    from ..api import estimate
    from ..planner.documents import model_row
    from ..planner.plan import assumptions
    from ..planner.report.text import estimate_text

    named = model_from(options)
    configuration = {name: options.pop(name) for name in FIXED}
    wanted = request_from(options)
    found = estimate(named.model, wanted=wanted, **configuration)
    _check_wishes(wanted.require, wanted.forbid, found.candidate.stack.names)
    document = {
        **found.to_dict(),
        "model": {**model_row(found.candidate), "note": named.note},
        "assumptions": assumptions(found.request, found.candidate),
    }
    click.echo(json.dumps(document, indent=2) if as_json else estimate_text(document))


def _check_wishes(require: tuple[str, ...], forbid: tuple[str, ...], names: tuple[str, ...]) -> None:
    """A fixed configuration cannot bend to --require and --forbid.

    Raises:
        InputError: they contradict it.
    """
    from ..planner.errors import InputError

    missing, present = [n for n in require if n not in names], [n for n in forbid if n in names]
    if missing or present:
        wish = f"--require {missing[0]}" if missing else f"--forbid {present[0]}"
        raise InputError(f"{wish}: contradicts the configuration, which is {', '.join(names)}; change one of them")
