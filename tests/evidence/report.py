"""`python -m tests.evidence.report`: the tables of docs/reference/evidence.md, as text."""

from __future__ import annotations

from collections.abc import Sequence

from trainplan.planner.report.table import table

from . import published, recorded, throughput


def sections() -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    """Title, header and rows of every table."""
    return [
        ("Model states against DeepSpeed engines: equal to the byte", *recorded.engine_table()),
        ("Activations against traces", *recorded.trace_table()),
        ("Published peaks", published.MEMORY_HEADER, published.memory_rows()),
        ("Does it fit", published.FIT_HEADER, published.fit_rows()),
        ("Rows that are not judged", published.UNSCORED_HEADER, published.unscored_rows()),
        ("Published throughput", throughput.TIME_HEADER, throughput.time_rows()),
        ("Throughput that is not judged", throughput.REASONS_HEADER, throughput.untimed_rows()),
        ("Whole runs, GPU-hours", throughput.RUNS_HEADER, throughput.run_rows()),
        ("Runs that are not judged", throughput.REASONS_HEADER, throughput.unjudged_run_rows()),
        ("The same case in other calculators", published.SAME_CASE_HEADER, published.same_case_rows()),
    ]


def main() -> None:
    """Print them."""
    for title, header, rows in sections():
        plain = [[cell.replace("**", "") for cell in row] for row in rows]
        print(f"{title}\n{table(plain, header=header, indent='  ')}\n")


if __name__ == "__main__":
    main()
