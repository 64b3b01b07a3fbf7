"""State lines of the ledger against the tensors that real DeepSpeed 0.19.8 engines held."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from trainplan.planner.computation import Computation
from trainplan.planner.ledger import Device, Item, Ledger, Phase, Tensors
from trainplan.planner.model import Model
from trainplan.planner.states import baseline
from trainplan.planner.transform import Setting, Stack, Strategy, fold
from trainplan.planner.workload import Precision as Kind
from trainplan.strategies.offload_optimizer import OffloadOptimizer
from trainplan.strategies.offload_parameters import OffloadParameters
from trainplan.strategies.precision import Precision
from trainplan.strategies.zero import Zero

from ..tiny import llama, setting

pytestmark = pytest.mark.oracle

Row = Mapping[str, str]
ENGINE_BUCKET_ELEMENTS = 300_000
# The stage-0 engine ran torch's AdamW as a loop over tensors, two fp32 temporaries of each; plans emit fused: true.
LOOPED_RUN, LOOP_BYTES = "z0_bf16_torchadamw", 8
TOLERANCE = {False: 0.0051, True: 0.01}  # a peak holds small tensors besides: norms, scalars of the optimizer
MODELS: Mapping[str, Model] = {
    "tiny": llama(),
    "tied": llama(tied=True),
    "big_embedding": llama(hidden=64, vocab=16384, intermediate=172),
    "straddle": llama(hidden=64, layers=2, vocab=32768, intermediate=128, tied=True),
}
ITEMS: Mapping[str, tuple[Item, ...]] = {
    "weights": (Item.WEIGHTS,),
    "weights_and_frozen": (Item.WEIGHTS, Item.FROZEN),
    "weights_host_copy": (Item.WEIGHTS_HOST_COPY,),
    "master": (Item.MASTER,),
    "moments": (Item.MOMENTS,),
    "gradients": (Item.GRADIENTS,),
    "waiting": (Item.ACCUMULATED,),
    "accumulated": (Item.ACCUMULATED,),
    "gradients_host": (Item.GRADIENTS_HOST,),
    "staging": (Item.OFFLOAD_STAGING,),
    "norm": (Item.NORM_TEMPORARY,),
    "states": (Item.MASTER, Item.MOMENTS, Item.GRADIENTS_HOST),
    "swap_buffers": (Item.SWAP_BUFFERS,),
}


def rows() -> list[Row]:
    """The data file, less its comment."""
    path = Path(__file__).parents[1] / "data" / "engine_bytes.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def start(row: Row, at: Setting) -> Ledger:
    """Everything is trained, or the query projections alone."""
    if row["trained"] == "all":
        return baseline(at)
    parameters = at.model.parameters
    trained = tuple(p.numel for p in parameters if "q_proj" in p.name)
    frozen = tuple(p.numel for p in parameters if "q_proj" not in p.name)
    return Ledger(trainable=Tensors(trained), frozen=Tensors(frozen), computation=Computation())


def ledger_of(row: Row) -> Ledger:
    """What the planner says of the engine's configuration."""
    at = setting(MODELS[row["model"]], ranks=int(row["world"]), micro_steps=int(row["micro_steps"]))
    stack: list[Strategy] = [Precision(Kind(row["precision"])), Zero(int(row["stage"]))]
    if row["optimizer_on"]:
        stack.append(OffloadOptimizer(row["optimizer_on"]))
    if row["parameters_on"]:
        stack.append(OffloadParameters(row["parameters_on"]))
    return fold(start(row, at), Stack.of(*stack), at)


def with_engine_bucket(ledger: Ledger, row: Row, phase: Phase) -> int:
    """Bytes on the GPU in a phase, as if the bucket had the engine's size."""
    total = ledger.by_phase(Device.GPU)[phase]
    buckets = [e for e in ledger.entries if e.item is Item.REDUCE_BUCKET and phase in e.phases]
    return total - sum(e.bytes for e in buckets) + len(buckets) * Kind(row["precision"]).bytes * ENGINE_BUCKET_ELEMENTS


def planned_bytes(row: Row) -> int:
    """The ledger's counterpart of one row."""
    ledger = ledger_of(row)
    if row["line"] in ("step_peak", "start_peak"):
        looped = LOOP_BYTES * ledger.trainable.largest if row["run"] == LOOPED_RUN else 0
        return looped + with_engine_bucket(ledger, row, Phase.STEP if row["line"] == "step_peak" else Phase.START)
    return ledger.bytes_of(*ITEMS[row["line"]], device=Device(row["device"]))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row['run']}-{row['line']}-{row['device']}")
def test_a_line_is_what_the_engine_held(row: Row) -> None:
    """Bytes per trained parameter agree to the rounding of the record; peaks to a hundredth."""
    planned = planned_bytes(row) / ledger_of(row).trainable.total
    assert planned == pytest.approx(float(row["bytes_per_parameter"]), abs=TOLERANCE[row["line"].endswith("_peak")])


def test_the_engines_model_is_ours() -> None:
    """The tiny Llama of the engines had 3,950,848 parameters: embeddings, four layers, one norm."""
    layer = 256 * 256 + 2 * 128 * 256 + 256 * 256 + 3 * 256 * 688 + 2 * 256
    assert llama().parameter_count == 2 * 2048 * 256 + 4 * layer + 256 == 3_950_848


def test_every_kind_of_line_was_compared() -> None:
    """No line of the table is left without a row."""
    assert {row["line"] for row in rows()} == {*ITEMS, "step_peak", "start_peak"}
