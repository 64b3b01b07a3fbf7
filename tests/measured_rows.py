"""Rows of measurements for tests: a small table in which everything is stated, and rows that differ from it."""

from __future__ import annotations

import csv
import io

from trainplan.planner.measurements.score import Prediction
from trainplan.planner.measurements.table import Measurement, Table, Unsupported, parse_table
from trainplan.strategies.measured import predict

# One run, every cell readable: full fine-tuning in bf16 on 8 GPUs.
GOOD = {
    "id": "run-1", "source": "ours", "model": "llama-2-7b", "task": "full-ft", "seq_len": "2048", "micro_batch": "1",
    "grad_accum": "1", "n_gpus": "8", "gpu": "a100-80", "precision": "bf16", "zero_stage": "3", "act_ckpt": "full",
    "framework": "torchtitan", "sharding": "FSDP", "peak_mem_gib": "20", "mem_kind": "max allocated", "outcome": "fits",
}  # fmt: skip


def csv_of(*rows: dict[str, str]) -> bytes:
    """A table whose rows differ from GOOD as given."""
    header = list(dict.fromkeys([*GOOD, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(GOOD | row for row in rows)
    return text.getvalue().encode()


def table_of(*rows: dict[str, str]) -> Table:
    """The same, read."""
    return parse_table(csv_of(*rows), where="t.csv")


def row_of(**cells: str) -> Measurement:
    """One row that differs from GOOD as given; it must be readable."""
    (row,) = table_of(cells).rows
    return row


def attempt(row: Measurement) -> Prediction | str:
    """The prediction, or why there is none; any other exception is a fault."""
    try:
        return predict(row)
    except Unsupported as reason:
        return str(reason)
