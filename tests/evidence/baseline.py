"""The usual formula of memory calculators, as a yardstick: state bytes per parameter, and 34 s b h a layer.

    states       full 16 B, pure 16-bit 8 B, LoRA 2 B, QLoRA 0.5 B per parameter, over t p; what ZeRO cuts over d too
    activations  34 s b h a layer; with checkpointing 2 s b h a layer and one whole layer

Source:
    Korthikanti et al. 2022 (arXiv:2205.05198) §4.1; Rajbhandari et al. 2020 (arXiv:1910.02054) §3; as in EleutherAI's
    "Transformer Math 101" and calculators after it.
"""

from __future__ import annotations

from trainplan.planner.measurements import layout, shape, subject
from trainplan.planner.measurements.table import Measurement
from trainplan.planner.workload import Method

STATE_BYTES = {Method.LORA: 2.0, Method.QLORA: 0.5}
FULL_BYTES, PURE_BYTES, ALWAYS_WHOLE = 16.0, 8.0, 4.0  # of them, ZeRO-1 leaves weights and gradients whole
LAYER_BYTES, CHECKPOINT_BYTES = 34, 2


def usual_formula_bytes(row: Measurement) -> float:
    """Peak of one GPU by the formula above.

    Raises:
        Unsupported: the row's model cannot be built.
    """
    model = shape.model_of(row)
    split = subject.split_of(row, model)
    parameters = model.parameter_count / (split.tensor * split.pipeline)
    return parameters * _per_parameter(row) + _activations(row, model.hidden, -(-model.layers // split.pipeline))


def _per_parameter(row: Measurement) -> float:
    method, ranks, stage = subject.method_of(row), row.replicas, row.whole("zero_stage")
    whole = STATE_BYTES.get(method, PURE_BYTES if layout.is_pure(row) else FULL_BYTES)
    if stage == 3:
        return whole / ranks
    return min(whole, ALWAYS_WHOLE) + max(0.0, whole - ALWAYS_WHOLE) / (ranks if stage else 1)


def _activations(row: Measurement, hidden: int, layers: int) -> float:
    one = row.whole("seq_len") * row.whole("micro_batch") * hidden
    if row.text("act_ckpt").startswith("full"):
        return one * (CHECKPOINT_BYTES * layers + LAYER_BYTES)
    return one * LAYER_BYTES * layers
