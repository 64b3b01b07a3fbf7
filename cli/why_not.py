"""`trainplan why-not PLAN --num-gpus 8 --zero 2`."""

from __future__ import annotations

from typing import Any

import click

from .complete import gpu_names


@click.command(name="why-not")
@click.argument("plan", type=click.Path())
@click.option("--num-gpus", type=click.IntRange(1, 2**17), metavar="N", help="So many GPUs instead.")
@click.option("--gpu", shell_complete=gpu_names, help="Another type instead.")
@click.option("--zero", type=click.IntRange(0, 3), metavar="STAGE", help="This ZeRO stage instead.")
@click.option("--micro-batch", type=click.IntRange(1, 65536), metavar="N", help="This micro-batch instead.")
@click.option("--method", type=click.Choice(("full", "lora", "qlora")), help="This method instead.")
@click.option("--offload-optimizer", type=click.Choice(("none", "cpu", "nvme")), help="Optimizer there instead.")
@click.option("--offload-parameters", type=click.Choice(("none", "cpu", "nvme")), help="Parameters there instead.")
@click.option("--checkpointing", help="none, full, or so many layers instead.")
@click.option("--prices", metavar="FILE", help="This price list instead of the plan's.")
@click.option("--profile", metavar="FILE", help="This profile of the GPUs instead of the plan's.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document alone.")
def command(plan: str, prices: str | None, profile: str | None, as_json: bool, **choice: Any) -> None:
    """Say which constraint rejects a choice, by how much, and the cheapest change that would admit it.

    PLAN is a plan.json or the folder that holds it; what the choice leaves open stays as planned.
    """
    import json
    from dataclasses import replace

    from ..api import why_not
    from ..planner.calibrate.profile import read_profile
    from ..planner.errors import InputError
    from ..planner.planfile import model_of, read_plan, request_of
    from ..planner.report.text import refused_text
    from ..strategies.space import known_name

    if all(value is None for value in choice.values()):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in choice)
        raise InputError(f"why-not: no choice to judge; give at least one of {names}")
    document = read_plan(plan)
    wanted = request_of(document)
    wanted = wanted if prices is None else replace(wanted, prices=prices)
    wanted = wanted if profile is None else replace(wanted, profile=profile)
    if wanted.profile is not None:
        read_profile(wanted.profile)  # what is wrong with it is no answer to the question
    for name in (*wanted.require, *wanted.forbid):
        known_name(name, where=f"{plan}: request")
    found = why_not(model_of(document), wanted, document["decision"], **choice).to_dict()
    click.echo(json.dumps(found, indent=2) if as_json else refused_text(found))
