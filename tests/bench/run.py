"""How fast the program is: `make bench`. Figures and their ratios; nothing here passes or fails."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import trainplan
from trainplan.api import request
from trainplan.planner import catalog
from trainplan.planner.bounds import folded
from trainplan.planner.candidate import assess
from trainplan.planner.hardware import Offer, Tier
from trainplan.planner.report.table import table
from trainplan.planner.search import Demand, explore
from trainplan.planner.transform import Setting
from trainplan.planner.workload import Method
from trainplan.strategies.space import Choices, families

RUNS = 5
COMMANDS: tuple[tuple[str, float], ...] = (
    ("--help", 0.2),
    ("--model 70b --gpus a100-80 --budget", 1.0),
    ("--model 70b --gpus any --budget", 3.0),
    ("--model llama-3-8b --gpus any --method qlora --json", 3.0),
)


def median_s(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median wall time of some runs."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def command_s(arguments: Sequence[str]) -> float:
    """A whole command, start-up included, in a folder of its own."""
    command = [sys.executable, "-m", "trainplan", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        return median_s(lambda: subprocess.run(command, cwd=folder, capture_output=True, check=True))


def commands() -> list[tuple[str, ...]]:
    """The commands with a limit."""
    rows: list[tuple[str, ...]] = [("command", "median", "limit", "share")]
    for line, limit_s in COMMANDS:
        seconds = command_s(line.split())
        rows.append((f"trainplan {line}", f"{seconds:.2f} s", f"{limit_s:.1f} s", f"{seconds / limit_s:.0%}"))
    return rows


def explored_s(offers: Sequence[Offer], demand: Demand, global_batch: int) -> float:
    """Exploring every column of 70b from cold caches."""
    model = trainplan.load_model("70b")
    workload = request(global_batch=global_batch).workload(model)
    every = families(Choices(), model)

    def work() -> None:
        folded.cache_clear()
        explore(workload, offers, every, demand)

    return median_s(work, runs=3)


def growth() -> list[tuple[str, ...]]:
    """Time against the size of the catalog and against the range of GPUs, as ratios of the smallest."""
    offers = catalog.select_offers(["any"], tier=Tier.ON_DEMAND)
    rows: list[tuple[str, ...]] = [("exploring 70b", "time", "ratio")]
    copies = {n: [replace(o, name=f"{o.name}#{i}") for i in range(n) for o in offers] for n in (1, 2, 4)}
    seconds = {f"catalog x {n}": explored_s(many, Demand(max_gpus=64), 256) for n, many in copies.items()}
    first = next(iter(seconds.values()))
    rows += [(name, f"{s:.2f} s", f"{s / first:.2f}") for name, s in seconds.items()]
    ranges = {f"up to {n} GPUs": explored_s(offers, Demand(max_gpus=n), 1024) for n in (8, 64, 256, 1024)}
    first = next(iter(ranges.values()))
    return rows + [(name, f"{s:.2f} s", f"{s / first:.2f}") for name, s in ranges.items()]


def in_process() -> list[tuple[str, ...]]:
    """One candidate, and one plan, without start-up."""
    model = trainplan.load_model("70b")
    found = trainplan.plan(model, gpus="a100-80", method="full").candidate
    setting: Setting = found.setting

    def estimate() -> None:
        assess(found.offer, found.stack, setting, method=Method.FULL, zero_stage=found.zero_stage)

    return [
        ("in process", "median"),
        ("one candidate: fold, price, bill", f"{median_s(estimate, runs=200) * 1000:.2f} ms"),
        ("trainplan.plan('70b', gpus='a100-80')", f"{median_s(lambda: trainplan.plan(model, gpus='a100-80')):.2f} s"),
    ]


def main() -> None:
    """Print all tables."""
    print(table(commands(), align="lrrr"), table(in_process(), align="lr"), table(growth(), align="lrr"), sep="\n\n")


if __name__ == "__main__":
    main()
