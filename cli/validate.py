"""`trainplan validate measurements.csv`."""

from __future__ import annotations

import click

GRADES = "A,B,M"


@click.command(name="validate")
@click.argument("table", type=click.Path())
@click.option(
    "--grades", default=GRADES, show_default=True, metavar="LIST", help="Values of the quality column that are judged."
)
@click.option("--good-rows", is_flag=True, help="Judge the good rows of a table that has problems.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document alone.")
def command(table: str, grades: str, good_rows: bool, as_json: bool) -> None:
    """Predict every measured run of a CSV, and say how far off memory, time, GPU-hours and fit decisions are.

    TABLE has one row per run; docs/reference/measurements.md describes its columns. A row that cannot be expressed is
    counted and named.
    """
    import json

    from ..api import validate
    from ..planner.report.validation_text import validation_text

    wanted = tuple(grade.strip() for grade in grades.split(",") if grade.strip())
    found = validate(table, grades=wanted, good_rows=good_rows)
    click.echo(json.dumps(found, indent=2) if as_json else validation_text(found))
