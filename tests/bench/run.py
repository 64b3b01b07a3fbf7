"""How long the program takes, and how that grows: `make bench` prints a table; nothing is asserted.

Seconds depend on the machine, so each stands beside its limit, and growth is shown as a ratio to the smallest case.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import trainplan
from trainplan.planner.hardware import Offer
from trainplan.planner.machines import offers_for
from trainplan.planner.models import load_model
from trainplan.planner.report.table import table
from trainplan.planner.request import Request
from trainplan.planner.search import Demand, explore
from trainplan.strategies.space import Choices, families

MEASURED = Path(__file__).resolve().parents[1] / "data" / "throughput.csv"
ROWS, VALIDATE_S = 1600, 10.0  # of a table of measurements, and their limit
RUNS = 5
HELP_S, SINGLE_S, ANY_S = 0.2, 1.0, 3.0  # limits: --help, one GPU type, all GPU types
MODEL = "70b"
COMMANDS: Sequence[tuple[str, float]] = (
    ("--help", HELP_S),
    ("--model 70b --gpus a100-80 --budget", SINGLE_S),
    ("--model 70b --gpus any --budget", ANY_S),
    ("--model llama-3-8b --gpus any --method qlora --json", ANY_S),
)
COPIES = (1, 2, 4)
TRACES: Sequence[tuple[str, float]] = (("llama-3.1-8b", 1.0), ("llama-3.1-405b", 10.0))  # limits in seconds
TRACE_RSS_GIB = 2.0  # the limit of each
TRACE = """
import resource, sys
import trainplan
from trainplan.planner.units import GIB
trainplan.trace("smollm2-135m", seq_len=128)  # imports torch, transformers and the family's module
found = trainplan.trace(sys.argv[1], seq_len=4096).trace
print(found.operations, found.seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB)
"""
MAX_GPUS = (8, 64, 256, 1024)
RANGE_BATCH = 1024  # sequences; every power of two up to the largest range divides it


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of the first call, and the median of some that follow it."""

    first_s: float
    median_s: float


def timed(call: Callable[[], object], runs: int = RUNS) -> Timing:
    """Time a call: once, then ``runs`` times more."""
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return Timing(first_s=seconds[0], median_s=statistics.median(seconds[1:]))


def main() -> None:
    """Print the tables, after how busy the machine is."""
    print(f"{os.cpu_count()} processors, load average {os.getloadavg()[0]:.2f}: other work makes every figure larger\n")
    with tempfile.TemporaryDirectory(prefix="trainplan-bench-") as folder:
        print(commands(Path(folder)))
    for part in (calls, validations, offers, gpu_range, traces):
        print(f"\n{part()}")


def commands(folder: Path) -> str:
    """The command line, each time as a new process that starts in an empty folder."""
    program = str(Path(sys.executable).with_name("trainplan"))
    environment = {**os.environ, "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder), "HOME": str(folder)}
    rows = []
    for arguments, limit_s in COMMANDS:
        command = [program, *arguments.split()]

        def start(command: Sequence[str] = command) -> None:
            subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)

        found = timed(start)
        cells = (found.first_s, found.median_s, limit_s)
        rows.append((f"trainplan {arguments}", *map(seconds_text, cells), ratio_text(found.median_s, limit_s)))
    header = (f"new process, median of {RUNS}", "first s", "median s", "limit s", "of the limit")
    return table(rows, header=header, align="lrrrr")


def calls() -> str:
    """Calls in this process, imports not counted; later calls find the caches filled."""
    model, fresh = load_model(MODEL), load_model("llama-3-8b")
    cases: Sequence[tuple[str, Callable[[], object]]] = (
        ("estimate, llama-3-8b on 8 a100-80", lambda: trainplan.estimate(fresh, gpus="8xa100-80")),
        ("plan, 70b on a100-80", lambda: trainplan.plan(model, gpus="a100-80")),
        ("plan, 70b on any GPU", lambda: trainplan.plan(model, gpus="any")),
    )
    found = [(name, timed(call)) for name, call in cases]
    rows = [(name, seconds_text(t.first_s), seconds_text(t.median_s)) for name, t in found]
    return table(rows, header=("in one process", "first s", f"median of {RUNS} more, s"), align="lrr")


def validations() -> str:
    """A table of measurements, in a new process: the published throughput, and again with twice the micro-batch."""
    with tempfile.TemporaryDirectory(prefix="trainplan-bench-") as folder:
        path = Path(folder) / "measured.csv"
        rows = _measurements()
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        command = [str(Path(sys.executable).with_name("trainplan")), "validate", str(path)]
        found = timed(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True), runs=2)
    cells = (found.first_s, found.median_s, VALIDATE_S)
    row = (f"validate, {len(rows):,} rows", *map(seconds_text, cells), ratio_text(found.median_s, VALIDATE_S))
    header = ("new process, median of 2", "first s", "median s", "limit s", "of the limit")
    return table([row], header=header, align="lrrrr")


def _measurements() -> list[dict[str, str]]:
    with MEASURED.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return [*rows, *(_again(row) for row in rows)][:ROWS]


def _again(row: dict[str, str]) -> dict[str, str]:
    """Under another name, with twice the micro-batch and half as many of them, so that no cache knows it."""
    micro_batch = str(2 * int(row["micro_batch"])) if row["micro_batch"] else ""
    return {**row, "id": f"{row['id']}-again", "micro_batch": micro_batch, "grad_accum": ""}


def offers() -> str:
    """The search alone, by the number of offers: copies of the whole catalog under other names."""
    request = Request(gpus=("any",))
    catalog = offers_for(request)
    cases = [(f"{n} x the catalog, {n * len(catalog)} offers", request, copies(catalog, n)) for n in COPIES]
    return growth("search by offers", cases)


def copies(catalog: Sequence[Offer], number: int) -> tuple[Offer, ...]:
    """The catalog and further copies of it, machines included, under names of their own."""
    return tuple(
        replace(offer, name=f"{offer.name}#{copy}", node=replace(offer.node))
        for copy in range(number)
        for offer in catalog
    )


def gpu_range() -> str:
    """The search alone, by the most GPUs that a plan may have."""
    requests = [Request(gpus=("any",), max_gpus=most, global_batch=RANGE_BATCH) for most in MAX_GPUS]
    cases = [(f"--max-gpus {request.max_gpus}", request, offers_for(request)) for request in requests]
    return growth(f"search by GPU range, global batch {RANGE_BATCH}", cases)


def traces() -> str:
    """Whole models traced, each in a new process whose imports are not counted."""
    rows = []
    for model, limit_s in TRACES:
        command = [sys.executable, "-c", TRACE, model]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        operations, seconds, gib = (float(word) for word in done.stdout.split())
        each_us = f"{1e6 * seconds / operations:.0f}"
        cells = (f"{operations:,.0f}", each_us, seconds_text(seconds), seconds_text(limit_s), f"{gib:.2f}")
        rows.append((model, *cells, ratio_text(seconds, limit_s)))
    header = ("trace", "operators", "us each", "s", "limit s", f"GiB, limit {TRACE_RSS_GIB:g}", "of the limit")
    return table(rows, header=header, align="lrrrrrr")


def growth(title: str, cases: Sequence[tuple[str, Request, Sequence[Offer]]]) -> str:
    """Seconds of the search, and the ratio to the first case; columns are what is left for the integer program."""
    rows = []
    first_s = 0.0
    for name, request, machines in cases:
        columns, found = search(request, machines)
        first_s = first_s or found.median_s
        ratio = ratio_text(found.median_s, first_s)
        rows.append((name, f"{columns:,}", seconds_text(found.first_s), seconds_text(found.median_s), ratio))
    header = (title, "columns", "first s", f"median of {RUNS} more, s", "to the first")
    return table(rows, header=header, align="lrrrr")


def search(request: Request, machines: Sequence[Offer]) -> tuple[int, Timing]:
    """Columns left, and seconds, of one exploration."""
    model = load_model(MODEL)
    workload, demand = request.workload(model), Demand(max_gpus=request.max_gpus)
    stacks = families(Choices(), model)
    columns: list[int] = []
    timing = timed(lambda: columns.append(len(explore(workload, machines, stacks, demand).columns)))
    return columns[0], timing


def seconds_text(seconds: float) -> str:
    """Three significant digits, down to a millisecond."""
    return f"{seconds:.3f}"


def ratio_text(value: float, base: float) -> str:
    """One amount as a multiple of another."""
    return f"{value / base:.2f} x"


if __name__ == "__main__":
    main()
