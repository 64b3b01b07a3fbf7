"""`trainplan explain PLAN`."""

from __future__ import annotations

import click


@click.command(name="explain")
@click.argument("plan")
@click.option("--line", help="Show the arithmetic and source of lines by name or section: logits, O1.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def command(plan: str, line: str | None, as_json: bool) -> None:
    """Show a plan's stack, one transform per row, and the arithmetic and source of any line.

    PLAN is a plan.json or the folder that holds it.
    """
    import json

    from ..planner.errors import InputError
    from ..planner.planfile import read_plan
    from ..planner.report.text import headline, lines_text, stack_text

    document = read_plan(plan)
    if as_json:
        click.echo(
            json.dumps({"stack": document["stack"], "memory": document["memory"], "time": document["time"]}, indent=2)
        )
        return
    if line is None:
        click.echo(
            f"{headline(document)}\n\n{stack_text(document)}\n\nThe arithmetic of a line: trainplan explain {plan} --line logits"
        )
        return
    text = lines_text(document, line)
    if not text:
        names = sorted(
            {e["item"] for d in document["memory"].values() for e in d["entries"]}
            | {t["name"] for t in document["time"]["terms"]}
        )
        raise InputError(f"--line {line}: no such line; lines of this plan are {', '.join(names)}")
    click.echo(text)
