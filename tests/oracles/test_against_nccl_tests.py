"""Predicted against measured bus bandwidth: nccl-tests on one to four nodes, 1 MB to 16 GiB, and peer copies.

Source: tests/data/collectives.csv, one source per row; two rows are arithmetic on a printed share of the NICs' rate and
say so. Constants of configs/fabrics.toml marked "fitted", "measured" or "derived" come from most of these rows, so this
checks the model's form; rows that none came from are in HELD_OUT.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
from trainplan.planner.catalog import find_gpu
from trainplan.planner.hardware import Gpu, Node
from trainplan.planner.time.network import bus_bytes_per_s, collective_s
from trainplan.planner.units import GBIT_BYTES, GIGA
from trainplan.planner.work import Resource

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parents[1] / "data" / "collectives.csv"
ROWS = tuple(csv.DictReader(DATA.read_text(encoding="utf-8").splitlines()))
BRIDGED = replace(find_gpu("h100-pcie"), link="NVLink bridge", link_bytes_per_s=300e9)  # the catalog has no bridges
WITHOUT_SWITCH = "all-reduce without switch"  # a ring: the bus bandwidth of an all-gather
# What the model reaches on these rows, with a little margin (2026-11-23: median 1.3 %, bias -1.2 %).
LARGEST_MEDIAN = 0.015
LARGEST_BIAS = 0.015
LARGEST_MISS = 0.11
LARGEST_HELD_OUT_MISS = 0.10
# Rows that are missed by more, and why.
EXPECTED_MISSES = {
    "dgx-h100-1MiB": "67 GB/s where Azure's H100 has 44 and its H200 53 at the same size: one latency cannot be all",
    "nd-h100-1MB": "44 GB/s where DGX has 67",
}
# Rows that no constant was taken from.
HELD_OUT = frozenset(("lambda-b200-2", "nebius-h100-2", "mi300x-2-nodes"))
# Microseconds of the smallest all-reduces as their sources print them, (GPU, nodes, Gbit/s, fabric): low, high. The
# model is fitted from 1 MB on; below, the library changes to protocols of less latency.
SMALLEST = {
    ("h100", 1, "", ""): (13, 17),  # NVIDIA/dgxc-benchmarking nccl/README
    ("h100", 2, "3200", "efa-v2"): (65, 75),  # p5, aws-samples/awsome-distributed-training 7217859f
    ("a100-80", 2, "400", "efa-v1"): (160, 160),  # p4de, the same
}


def gpu_of(row: dict[str, str]) -> Gpu:
    """The row's GPU."""
    return BRIDGED if row["gpu"] == "h100-bridge" else find_gpu(row["gpu"])


def node_of(row: dict[str, str]) -> Node:
    """The row's machine."""
    gbit = row["internode_gbit_per_s"]
    return Node(
        gpu=gpu_of(row),
        gpus=int(row["gpus_per_node"]),
        host_memory_bytes=None,
        vcpus=None,
        nvme_bytes=None,
        internode_bytes_per_s=float(gbit) * GBIT_BYTES if gbit else None,
        fabric=row["fabric"] or None,
    )


def predicted(row: dict[str, str]) -> float:
    """Bus bandwidth in GB/s."""
    kind = Resource.ALL_GATHER if row["kind"] == WITHOUT_SWITCH else Resource(row["kind"])
    nodes, ranks = int(row["nodes"]), int(row["ranks_per_node"])
    return bus_bytes_per_s(kind, int(row["bytes"]), nodes=nodes, ranks_per_node=ranks, node=node_of(row)) / GIGA


@lru_cache
def errors() -> dict[str, float]:
    """Relative error of each row, positive where the prediction is too fast."""
    return {row["id"]: predicted(row) / float(row["busbw_gb_per_s"]) - 1 for row in ROWS}


def table() -> str:
    """Every row, measured and predicted."""
    return "\n".join(
        f"{row['id']:<22}{row['kind']:<28}{float(row['busbw_gb_per_s']):>8.1f}{predicted(row):>8.1f}{errors()[row['id']]:>+8.1%}"
        for row in ROWS
    )


def test_median_and_bias(capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the rows are within the median, and the model leans to neither side; all errors are printed."""
    with capsys.disabled():
        print("", table(), sep="\n")
    signed = list(errors().values())
    assert len(signed) == 54
    assert statistics.median(abs(error) for error in signed) <= LARGEST_MEDIAN
    assert abs(statistics.mean(signed)) <= LARGEST_BIAS


def test_only_the_known_rows_are_far_off() -> None:
    """Every row is within 11 % but those that are listed with their reason."""
    assert {name for name, error in errors().items() if abs(error) > LARGEST_MISS} == set(EXPECTED_MISSES)


def test_rows_that_no_constant_was_taken_from() -> None:
    """The rows that were only predicted are no worse than the others: within 10 %."""
    assert {row["id"] for row in ROWS} >= HELD_OUT
    assert max(abs(errors()[name]) for name in HELD_OUT) <= LARGEST_HELD_OUT_MISS


def test_rows_are_stated() -> None:
    """Each row has a source, is measured or derived, and has its own name."""
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert all(row["source"] and row["known"] in ("measured", "derived") for row in ROWS)


@pytest.mark.parametrize("machine", SMALLEST, ids=lambda m: f"{m[0]}-{m[1]}")
def test_the_smallest_messages(machine: tuple[str, int, str, str]) -> None:
    """1 KiB: never quicker than the quickest measured, at most 1.8 times the slowest."""
    gpu, nodes, gbit, fabric = machine
    row = {"gpu": gpu, "gpus_per_node": "8", "internode_gbit_per_s": gbit, "fabric": fabric}
    seconds = collective_s(Resource.ALL_REDUCE, 1024, nodes=nodes, ranks_per_node=8, node=node_of(row))
    low, high = SMALLEST[machine]
    assert low <= seconds * 1e6 <= 1.8 * high
