"""What calculators say without a model of memory or time, as yardsticks on the same rows.

Memory, the usual formula: state bytes per parameter, and 34 s b h a layer.

    states       full 16 B, pure 16-bit 8 B, LoRA 2 B, QLoRA 0.5 B per parameter, over t p; what ZeRO cuts over d too
    activations  34 s b h a layer; with checkpointing 2 s b h a layer and one whole layer

Throughput, 6ND at one MFU: u F / 6 N tokens per second and GPU, F the peak of 16-bit multiplications, N the parameters
a token meets, u fitted to the rows it is judged on: the one with the least mean absolute error of logarithms.

Throughput, roofline: the slowest of FLOPs over peak, bytes over memory bandwidth, and bytes over each link, all as data
sheets have them: no share of a peak, no launches, everything hidden behind the slowest; a pipeline's bubble counted.

Source:
    Korthikanti et al. 2022 (arXiv:2205.05198) §4.1; Rajbhandari et al. 2020 (arXiv:1910.02054) §3; as in EleutherAI's
    "Transformer Math 101" and calculators after it. Kaplan et al. 2020 (arXiv:2001.08361) §2.1 for 6 N; Williams et al.
    2009 (doi:10.1145/1498765.1498785) for the roofline.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping

from trainplan.planner.candidate import all_work
from trainplan.planner.compute import model_flops_per_token
from trainplan.planner.hardware import Gpu, Node
from trainplan.planner.measurements import layout, machine, shape, subject
from trainplan.planner.measurements.table import Measurement
from trainplan.planner.parallel import Places
from trainplan.planner.work import Resource, Work
from trainplan.planner.workload import Method
from trainplan.strategies.measured import Part, checkpointing_of, parts_of

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


def flops_per_token(row: Measurement) -> float:
    """6 N."""
    return model_flops_per_token(shape.model_of(row), 0)


def peak_flop_per_s(row: Measurement) -> float:
    """F."""
    gpu = machine.gpu_of(row)
    assert gpu is not None
    return gpu.bf16_flop_per_s or gpu.fp16_flop_per_s or math.nan


def constant_mfu(rows: Iterable[tuple[Measurement, float]]) -> float:
    """u: the median of what each row reaches, which has the least mean absolute error of logarithms.

    Args:
        rows: with the tokens per second and GPU that were measured.
    """
    return statistics.median(rate * flops_per_token(row) / peak_flop_per_s(row) for row, rate in rows)


def six_nd(row: Measurement, mfu: float) -> float:
    """u F / 6 N, tokens per second and GPU."""
    return mfu * peak_flop_per_s(row) / flops_per_token(row)


def roofline(row: Measurement) -> float:
    """Tokens per second and GPU of the slowest pipeline stage; nothing is recomputed where the row does not say."""
    gpu = machine.gpu_of(row)
    assert gpu is not None
    parts = parts_of(row, checkpointing_of(row) if row.text("act_ckpt") else "none")
    seconds = max(_step_s(part, machine.node_of(row, gpu)) for part in parts)
    ranks = parts[0].setting.split.ranks
    return row.whole("micro_batch") * row.micro_steps * row.whole("seq_len") / ranks / seconds


def _step_s(part: Part, node: Node) -> float:
    setting = part.setting
    bubble = (setting.split.pipeline - 1) / setting.split.virtual
    times = setting.gradient_accumulation_steps + bubble
    return slowest_s(all_work(part.ledger, setting), node, setting.places, times)


def slowest_s(work: Iterable[Work], node: Node, places: Places, times: float) -> float:
    """Seconds of a step: the unit of the machine that has the most to do.

    Args:
        work: of one micro-step, and what happens once.
        node: the machine.
        places: of each group of ranks: nodes, and ranks in each.
        times: micro-steps.
    """
    seconds: dict[str, float] = defaultdict(float)
    for each in work:
        unit, rate = _unit(each, node, places)
        if rate:
            seconds[unit] += _moved(each, places) / rate * (1.0 if each.once else times)
    return max(seconds.values())


LINKED = frozenset(
    {Resource.ALL_REDUCE, Resource.ALL_GATHER, Resource.REDUCE_SCATTER, Resource.ALL_TO_ALL, Resource.SEND}
)
HOST = frozenset({Resource.HOST_TO_GPU, Resource.GPU_TO_HOST})


def _unit(work: Work, node: Node, places: Places) -> tuple[str, float]:
    """Who does it, and how much a second; 0: it is not counted."""
    gpu = node.gpu
    if work.resource in (Resource.MATMUL, Resource.ATTENTION):
        return "compute", _peak(gpu, work.bits)
    if work.resource is Resource.MEMORY:
        return "memory", gpu.memory_bandwidth_bytes_per_s
    if work.resource in HOST:
        return work.resource.value, gpu.host_link_bytes_per_s
    if work.resource not in LINKED:
        return work.resource.value, 0.0
    if places[work.group][0] == 1:
        return "link", gpu.link_bytes_per_s
    return "network", (node.internode_bytes_per_s or 0.0) / node.gpus


def _peak(gpu: Gpu, bits: int) -> float:
    sixteen = gpu.bf16_flop_per_s or gpu.fp16_flop_per_s or 0.0
    low: Mapping[int, float | None] = {8: gpu.fp8_flop_per_s, 4: gpu.fp4_flop_per_s}
    return low.get(bits) or sixteen


def _moved(work: Work, places: Places) -> float:
    """Bytes that pass a rank's link: (n - 1) / n of the buffer, twice of an all-reduce."""
    if work.resource not in LINKED or work.resource is Resource.SEND:
        return work.amount
    nodes, inside = places[work.group]
    share = 1 - 1 / (nodes * inside)
    return work.amount * share * (2 if work.resource is Resource.ALL_REDUCE else 1)
