"""Lower bounds of a step's seconds, from what activations admit: they decide which candidates are worth folding whole.

A fold has two halves. Method, optimizer, precision and activations decide what is computed, and know no ranks; ZeRO and
offload decide where states live. The first half is shared by all ranks and machines.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache

from .candidate import step_parts
from .computation import Computation
from .compute import compute_work
from .evaluate import activation_entries, complete
from .family import Family
from .hardware import Gpu, Node, bare
from .ledger import Device, Ledger, Phase
from .model import Model
from .states import baseline
from .time import price_parts
from .transform import Setting, Stack, fold
from .workload import Workload

STORAGE_RANK = 50  # strategies below it decide what is computed, those from it on where states live


@lru_cache(maxsize=65536)
def folded(family: Family, setting: Setting, layers: int, groups: int) -> Ledger:
    """The complete ledger of one point; what is computed is folded once for all ranks and micro-batches."""
    storage = tuple(s for s in family.at(layers, groups).strategies if s.rank >= STORAGE_RANK)
    start = _computed(family, setting.workload, layers, setting.micro_batch)
    return complete(fold(start, Stack(storage), setting), setting)


@lru_cache(maxsize=16384)
def _computed(family: Family, workload: Workload, layers: int, micro_batch: int) -> Ledger:
    """The fold's first half: method, optimizer, precision, activations; it knows no ranks."""
    setting = Setting(workload=workload, nodes=1, ranks_per_node=1, micro_batch=micro_batch)
    strategies = family.at(layers, max(1, family.groups)).strategies
    return fold(baseline(setting), Stack(tuple(s for s in strategies if s.rank < STORAGE_RANK)), setting)


@lru_cache(maxsize=65536)
def leanest_computation(family: Family, workload: Workload, micro_batch: int, gpu: Gpu) -> Computation | None:
    """What the family computes with the fewest checkpointed layers that activations admit; None where none do."""
    computation = _computed(family, workload, 1, 1).computation
    shrunk = min(0.0, gpu.calibration.live.upper)  # activations measured smaller than counted leave room for more
    capacity = int(gpu.memory_bytes / (1 + shrunk)) if shrunk else gpu.memory_bytes
    return _fewest_layers(workload.model, computation, workload.seq_len, micro_batch, capacity)


@lru_cache(maxsize=65536)
def _fewest_layers(
    model: Model, computation: Computation, seq_len: int, micro_batch: int, capacity_bytes: int
) -> Computation | None:
    """The computation with the fewest checkpointed layers whose activations fit with nothing else on the GPU."""

    def fits(layers: int) -> bool:
        return (
            _activations(model, replace(computation, checkpointed_layers=layers), seq_len, micro_batch)
            <= capacity_bytes
        )

    if not computation.checkpointed_layers:
        return computation if fits(0) else None
    low, high = 1, model.layers + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return replace(computation, checkpointed_layers=low) if low <= model.layers else None


def _by_phase(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> Counter[Phase]:
    """The activation lines alone, on the GPU, at their upper bounds."""
    totals: Counter[Phase] = Counter()
    for entry in activation_entries(model, computation, seq_len, micro_batch):
        if entry.device is Device.GPU:
            totals.update(dict.fromkeys(entry.phases, entry.upper_bytes))
    return totals


def _activations(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """Peak of the activation lines alone."""
    return max(_by_phase(model, computation, seq_len, micro_batch).values(), default=0)


@lru_cache(maxsize=4096)
def chord_excess(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> dict[Phase, int]:
    """Bytes by which a line through k = 1 and k = L is above the activations of some k between; none for equal layers.

    Where layers differ (Jamba, Gemma-3) activations are no line in k; less this excess the line never exceeds them.
    """
    if len(model.distinct_blocks) == 1 or model.layers == 1:
        return dict.fromkeys(Phase, 0)
    ks = range(1, model.layers + 1)
    every = [_by_phase(model, replace(computation, checkpointed_layers=k), seq_len, micro_batch) for k in ks]
    first, last = every[0], every[-1]

    def above(phase: Phase) -> int:
        slope = (last[phase] - first[phase]) / (len(every) - 1)
        return math.ceil(max(first[phase] + slope * step - exact[phase] for step, exact in enumerate(every)))

    return {phase: max(0, above(phase)) for phase in Phase}


def compute_only_s(family: Family, setting: Setting, node: Node) -> float:
    """Lower bound of the step's seconds: compute alone."""
    each = _least_compute_s(family, setting.workload, setting.micro_batch, node.gpu)
    return each * setting.gradient_accumulation_steps


@lru_cache(maxsize=65536)
def _least_compute_s(family: Family, workload: Workload, micro_batch: int, gpu: Gpu) -> float:
    """Seconds of one micro-step's least compute; infinite where no number of checkpointed layers fits."""
    computation = leanest_computation(family, workload, micro_batch, gpu)
    if computation is None:
        return math.inf
    return _compute_s(workload.model, computation, workload.seq_len, micro_batch, gpu)


@lru_cache(maxsize=65536)
def _compute_s(model: Model, computation: Computation, seq_len: int, micro_batch: int, gpu: Gpu) -> float:
    """Seconds of compute of one micro-step."""
    parts = price_parts(
        compute_work(model, computation, seq_len, micro_batch),
        bare(gpu),
        nodes=1,
        ranks_per_node=1,
        gradient_accumulation_steps=1,
        layers=model.layers,
        precision=computation.precision,
    )
    return sum(part.times * max(part.bounds_s) for part in parts)


def traffic_bound_s(lightest: Ledger, family: Family, setting: Setting, node: Node) -> float:
    """Lower bound of the step's seconds: the least compute that activations admit, and the least traffic.

    Of the shares the smallest moves least: what stays on the GPU is updated there, and faster.
    """
    computation = leanest_computation(family, setting.workload, setting.micro_batch, node.gpu)
    if computation is None:
        return math.inf
    return sum(part.times * max(part.bounds_s) for part in step_parts(lightest, computation, setting, node))
