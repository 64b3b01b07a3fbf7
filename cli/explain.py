"""`trainplan explain PLAN`."""

from __future__ import annotations

import click


@click.command(name="explain")
@click.argument("plan", type=click.Path())
@click.option("--line", help="Show the arithmetic and source of lines by name or section: logits, O1.")
@click.option("--json", "as_json", is_flag=True, help="Print stack, memory and time as JSON.")
def command(plan: str, line: str | None, as_json: bool) -> None:
    """Show a plan's stack, one transform per row, and the arithmetic and source of any line.

    PLAN is a plan.json or the folder that holds it.
    """
    import json
    import shlex

    from ..planner.errors import InputError
    from ..planner.planfile import read_plan
    from ..planner.report.run_table import run_text
    from ..planner.report.text import headline, line_names, lines_text, stack_text

    document = read_plan(plan)
    text = lines_text(document, line) if line is not None else ""
    if line is not None and not text:
        raise InputError(
            f"--line: no such line, got {line[:40]!r}; lines of this plan are {'; '.join(line_names(document))}; "
            "give a part of a name"
        )
    if as_json:
        click.echo(json.dumps({key: document[key] for key in ("stack", "memory", "time", "cost")}, indent=2))
    elif line is not None:
        click.echo(text)
    else:
        hint = f"The arithmetic of a line: trainplan explain {shlex.quote(plan)} --line logits"
        click.echo(f"{headline(document)}\n\n{stack_text(document)}\n\n{run_text(document['cost'])}\n\n{hint}")
