"""Model states of plain data-parallel training (ZeRO stage 0), and the tensors trained: where every stack starts.

Symbols: N trained elements, F frozen elements, e bytes of the training precision, d data-parallel ranks.

Source:
    DeepSpeed 0.19.8 runtime/fp16/unfused_optimizer.py and runtime/engine.py, walked on real engines (bf16: 14 N
    resident + 2 N gradients + 4 N fp32 gradients at the step, and as much at start-up). Memory model §W1-§O4.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from .computation import Adapters, Computation
from .ledger import (
    ALWAYS,
    BACKWARDS,
    SINCE_THE_FIRST_STEP,
    Device,
    Entry,
    Item,
    Ledger,
    Phase,
    Tensors,
    moved_elements,
    tensor_partition,
)
from .model import Model, Parameter, ParameterKind
from .transform import Setting
from .work import Resource, When, Work
from .workload import Precision

ALL_REDUCE_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed 0.19.8 runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE
NORM_BYTES = 8  # DeepSpeed 0.19.8 runtime/zero/utils.py, get_norm_dtype: gradients are cast to fp64, tensor by tensor
FP32 = 4
SUB_GROUP_ELEMENTS = 100_000_000  # bounds the fp32 copies of stage 3's step; the default 1e9 keeps 6 GB of them
OPTIMIZER_UPDATE = "optimizer update"
GRADIENT_ALL_REDUCE = "all-reduce gradients"
UPDATED_WEIGHTS = "updated weights from host"
CPU_OPTIMIZER = "CPU optimizer"
STATES_READ, STATES_WRITTEN = "states from NVMe", "states to NVMe"


NOTHING = Tensors(())


def pinned(size: int) -> int:
    """Page-locked memory is rounded up to a power of two by torch's caching host allocator.

    Source:
        pytorch docs, torch.cuda.host_memory_stats; upper bound, since other back-ends allocate exactly.

    >>> pinned(5)
    8
    """
    return 1 << (size - 1).bit_length() if size else 0


def baseline(setting: Setting) -> Ledger:
    """Full fine-tuning in bf16 with AdamW: what strategies start from. State lines are not yet written."""
    return Ledger(trainable=trained_tensors(setting.model, None), frozen=NOTHING, computation=Computation())


@lru_cache(maxsize=64)
def trained_tensors(model: Model, adapters: Adapters | None) -> Tensors:
    """Element counts of what is trained, in the order DeepSpeed flattens them.

    An adapter of rank r on a weight of fan_in x fan_out is A (r x fan_in) and B (fan_out x r).
    """
    if adapters is None:
        return _tensors(model, model.parameters)
    return Tensors(
        tuple(n for block in model.blocks for p in adapters.adapted(block) for n in _adapter(p, adapters.rank))
    )


def _tensors(model: Model, parameters: tuple[Parameter, ...]) -> Tensors:
    """Those of a rank; its experts apart where they are spread over ranks."""
    if model.expert_ranks == 1:
        return Tensors(tuple(p.numel for p in parameters))
    shared = tuple(p.numel for p in parameters if p.kind is not ParameterKind.EXPERTS)
    return Tensors(shared, tuple(p.numel for p in parameters if p.kind is ParameterKind.EXPERTS), model.expert_ranks)


def _adapter(weight: Parameter, rank: int) -> tuple[int, int]:
    return rank * weight.fan_in, weight.fan_out * rank


@lru_cache(maxsize=64)
def frozen_tensors(model: Model) -> Tensors:
    """Element counts of the base model under LoRA."""
    return _tensors(model, model.parameters)


@lru_cache(maxsize=64)
def unquantized_tensors(model: Model) -> Tensors:
    """What bitsandbytes leaves in 16 bit: everything but the nn.Linear weights of the blocks."""
    block = tuple(p for b in model.blocks for p in b.parameters if p.kind is not ParameterKind.LINEAR)
    return _tensors(model, (*model.embedding, *block, *model.head))


@lru_cache(maxsize=64)
def quantized_tensors(model: Model) -> Tensors:
    """What bitsandbytes turns into NF4: the nn.Linear weights of the blocks (lm_head is skipped by default)."""
    return Tensors(tuple(p.numel for b in model.blocks for p in b.parameters if p.kind is ParameterKind.LINEAR))


@lru_cache(maxsize=64)
def packed_tensors(model: Model, element_bytes: int) -> Tensors:
    """The same as they are stored: two NF4 values a byte, in elements of the training precision, which ZeRO-3 cuts.

    >>> packed_elements(4096, 2)
    1024
    """
    return Tensors(tuple(packed_elements(n, element_bytes) for n in quantized_tensors(model).numels))


def packed_elements(numel: int, element_bytes: int) -> int:
    """Elements that so many NF4 values are stored in: numel / (2 e), rounded up."""
    return -(-numel // (2 * element_bytes))


def layer_elements(model: Model) -> int:
    """Elements of the largest layer."""
    return max(block.numel for block, _ in model.distinct_blocks)


@lru_cache(maxsize=64)
def largest_module(model: Model) -> int:
    """Elements of the largest single tensor: what ZeRO-3 gathers whole, whatever its limits."""
    return max(p.numel for p in model.parameters)


@lru_cache(maxsize=8192)
def sub_groups(tensors: Tensors, ranks: int, size: int) -> tuple[int, ...]:
    """Elements of one rank's sub-groups (ZeRO stage 3): each is closed by the tensor that fills it to ``size``.

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage3.py, ``_create_fp16_sub_groups``.

    >>> sub_groups(Tensors((8, 2, 2, 6)), 2, 4)
    (4, 5)
    """
    if size >= tensor_partition(tensors, ranks):
        return (tensor_partition(tensors, ranks),)
    groups, filled = [], 0
    for numel, over in ((numel, r) for t, r in tensors.groups(ranks) for numel in t.numels):
        filled += -(-numel // over)
        if filled >= size:
            groups.append(filled)
            filled = 0
    return (*groups, filled) if filled else tuple(groups)


def hooking_bytes(ledger: Ledger, setting: Setting) -> int:
    """The largest trained tensor, gathered whole: stage 3 does so with each at start-up, to hang its hook on it.

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage3.py, ``create_reduce_and_remove_grad_hooks``; walked.
    """
    d = setting.world_size
    return ledger.computation.precision.bytes * -(-ledger.trainable.largest // d) * d


def bypassing_entry(ledger: Ledger, bucket: int, ranks: int) -> Entry:
    """Stage 1: gradients of tensors larger than the bucket that are not the rank's own wait whole in .grad.

    Other gradients point into the bucket once they are reduced; these are their own tensors until the backward pass is
    over. Formula: e x elements of such tensors x (d - 1) / d, at most all of them.

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py, ``extra_large_param_to_reduce``; walked.
    """
    e = ledger.computation.precision.bytes
    large = sum(numel * count for numel, count in ledger.trainable.histogram if numel > bucket)
    why = f"{e} B x {large:,} elements of tensors larger than the bucket, less the rank's own"
    size = e * large * (ranks - 1) // ranks
    return Entry(Item.GRADIENTS, Device.GPU, size, (Phase.BACKWARD_END,), why, upper=e * large)


def accumulating(setting: Setting) -> bool:
    """Whether gradients of earlier micro-steps are already there when a micro-step begins."""
    return setting.gradient_accumulation_steps > 1


def gradient_phases(setting: Setting) -> tuple[Phase, ...]:
    """When accumulated gradients are alive: through the next micro-steps too if there are any."""
    if accumulating(setting):
        return (Phase.FORWARD, Phase.LOSS, *BACKWARDS, Phase.STEP)
    return (Phase.BACKWARD_END, Phase.STEP)


def master_entry(elements: int, device: Device, why: str) -> Entry:
    """fp32 copy of what is trained."""
    return Entry(Item.MASTER, device, FP32 * elements, ALWAYS, why)


def moments_entry(ledger: Ledger, elements: int, device: Device, why: str) -> Entry:
    """Optimizer states; torch creates them at the first step, so that a first backward proves nothing."""
    kind = ledger.optimizer
    size = round((kind.state_bytes if device is Device.GPU else kind.host_bytes) * elements)
    return Entry(Item.MOMENTS, device, size, SINCE_THE_FIRST_STEP, why, source=ledger.optimizer.source)


def accumulates_in_fp32(ledger: Ledger) -> bool:
    """Whether fp32 sums of 16-bit gradients are required."""
    return ledger.accumulation is Precision.FP32 and ledger.computation.precision is not Precision.FP32


def accumulation_bytes(ledger: Ledger) -> int:
    """Bytes of one element of the sums of gradients over micro-steps."""
    return (ledger.accumulation or ledger.computation.precision).bytes


def in_flight_bytes(ledger: Ledger, setting: Setting) -> int:
    """Gradients that exist only as autograd's result: one layer's, or the embedding's.

    A tied embedding waits in autograd's buffer, meets the gradient of the lookup, and their sum is a third tensor: two
    of them come on top of the accumulated one. Checked on the real allocator with torch 2.13.0.
    """
    element = ledger.computation.precision.bytes
    model = setting.model
    if ledger.computation.adapters is not None:
        return element * ledger.trainable.largest
    embedding = model.vocab * model.hidden
    return element * max(layer_elements(model), embedding * (2 if model.tied else 1))


def in_flight_phases(ledger: Ledger) -> tuple[Phase, ...]:
    """When gradients are in flight: backward; with a chunked loss the head's is made in forward, chunk by chunk.

    Source:
        Liger-Kernel, ops/fused_linear_cross_entropy.py: grad_weight is allocated before the loop over chunks.
    """
    return (Phase.LOSS, *BACKWARDS) if ledger.computation.loss_chunk else (*BACKWARDS,)


def in_flight_entry(ledger: Ledger, setting: Setting) -> Entry:
    """The ledger's line of gradients in flight."""
    count, phases = in_flight_bytes(ledger, setting), in_flight_phases(ledger)
    return Entry(Item.IN_FLIGHT, Device.GPU, count, phases, "largest layer, or the embedding")


def update_traffic_bytes(ledger: Ledger, elements: int) -> float:
    """Bytes an optimizer step moves in memory: read and write master and states, read gradients, write weights.

    (2 (4 + states) + 4 + e) per element, plus turning e-byte gradients into fp32: e + 4.
    """
    element = ledger.computation.precision.bytes
    return elements * (2 * (FP32 + ledger.optimizer.state_bytes) + FP32 + element + element + FP32)


def replicated(ledger: Ledger, setting: Setting) -> Ledger:
    """Write the state lines of ZeRO stage 0, where every rank holds everything.

    In 16 bit the engine takes a step on zero gradients as it is built, so that states, gradients and their fp32 copies
    are there at start-up already. The all-reduce flattens a copy of each bucket between the backward pass and the step;
    in 16 bit it is smaller than the step's fp32 gradients, which are not there yet, and no line of its own.
    """
    n, e = ledger.trainable.total, ledger.computation.precision.bytes
    low_precision = e < FP32
    why = f"{n:,} trained elements"
    flatten = e * min(n, ALL_REDUCE_BUCKET_ELEMENTS) if setting.world_size > 1 and not low_precision else 0
    updating = round(ledger.optimizer.step_bytes * ledger.trainable.largest)  # tensor by tensor
    flat = round(ledger.optimizer.flat_bytes * n)
    copies = max(FP32 * n + flat + updating, NORM_BYTES * ledger.trainable.largest) if low_precision else updating
    moments = moments_entry(ledger, n, Device.GPU, f"{ledger.optimizer.state_bytes:g} B x {why}")
    return (
        replace(ledger, stage=0)
        .plus(
            Entry(Item.WEIGHTS, Device.GPU, e * n, ALWAYS, f"{e} B x {why}"),
            Entry(
                Item.FROZEN,
                Device.GPU,
                e * ledger.frozen.total,
                ALWAYS,
                f"{e} B x {ledger.frozen.total:,} frozen elements",
            ),
            master_entry(n if low_precision else 0, Device.GPU, f"4 B x {why}"),
            replace(moments, phases=ALWAYS) if low_precision else moments,
            Entry(Item.GRADIENTS, Device.GPU, e * n, gradient_phases(setting), f"{e} B x {why}"),
            in_flight_entry(ledger, setting),
            Entry(
                Item.STEP_TEMPORARIES,
                Device.GPU,
                copies,
                (Phase.STEP,),
                f"fp32 gradients, 4 B x {n:,}, or before them the fp64 norm of one tensor",
            ),
            Entry(
                Item.STEP_TEMPORARIES,
                Device.GPU,
                (e + FP32) * n if low_precision else 0,
                (Phase.START,),
                f"({e} + 4) B x {n:,}: a step on zero gradients allocates the states",
            ),
            Entry(
                Item.GRADIENT_FLATTENING,
                Device.GPU,
                flatten,
                (Phase.STEP,),
                f"{e} B x at most {ALL_REDUCE_BUCKET_ELEMENTS:,} elements, flattened before the step",
            ),
        )
        .doing(
            Work(
                name=OPTIMIZER_UPDATE,
                resource=Resource.MEMORY,
                amount=update_traffic_bytes(ledger, n),
                when=When.STEP,
                once=True,
            ),
            Work(
                name=GRADIENT_ALL_REDUCE,
                resource=Resource.ALL_REDUCE,
                amount=e * moved_elements(ledger.trainable, setting.world_size),
                when=When.STEP,
                once=True,
                message_bytes=e * min(n, ALL_REDUCE_BUCKET_ELEMENTS),
                source="DeepSpeed 0.19.8 runtime/engine.py, allreduce_gradients: after the last backward, no overlap",
            ),
        )
    )
