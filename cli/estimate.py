"""`trainplan estimate`: one fixed configuration."""

from __future__ import annotations

from typing import Any

import click

from .plan_options import JOB, MACHINES, STRATEGIES, WHAT, applied, model_from, request_from

CONFIGURATION = (
    click.option(
        "--method",
        type=click.Choice(("full", "lora", "qlora")),
        default="full",
        show_default=True,
        help="What is trained.",
    ),
    click.option("--zero", type=click.IntRange(0, 3), default=3, show_default=True, help="ZeRO stage."),
    click.option(
        "--micro-batch",
        type=click.IntRange(1, 65536),
        default=1,
        show_default=True,
        help="Sequences per GPU and micro-step.",
    ),
    click.option(
        "--checkpointing",
        default="none",
        show_default=True,
        help="none, full, or how many layers; -offload appended keeps checkpoints on the host.",
    ),
    click.option(
        "--offload-optimizer", type=click.Choice(("cpu", "nvme")), help="Optimizer states on the host or on NVMe."
    ),
    click.option(
        "--offload-ratio", type=float, default=1.0, show_default=True, help="Share of the optimizer on the host."
    ),
    click.option("--offload-parameters", type=click.Choice(("cpu", "nvme")), help="Parameters on the host or on NVMe."),
)


@click.command(name="estimate")
@applied((*WHAT, *JOB, *MACHINES, *STRATEGIES, *CONFIGURATION))
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document alone.")
def command(*, as_json: bool, **options: Any) -> None:
    """Judge one fixed configuration: how much memory, how long, what it costs, does it fit.

    Exit 0 whether it fits or not; the answer says which.
    """
    import json

    from ..api import estimate
    from ..planner.report.text import estimate_text

    model = model_from(options)
    configuration = {
        name: options.pop(name)
        for name in ("zero", "micro_batch", "checkpointing", "offload_optimizer", "offload_ratio", "offload_parameters")
    }
    document = estimate(model, wanted=request_from(options), **configuration).to_dict()
    click.echo(json.dumps(document, indent=2) if as_json else estimate_text(document))
