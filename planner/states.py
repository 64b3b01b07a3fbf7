"""Model states of plain data-parallel training (ZeRO stage 0), and the tensors trained: where every stack starts.

Symbols: N trained elements, F frozen elements, e bytes of the training precision, d data-parallel ranks.

Source:
    DeepSpeed 0.19.8 runtime/fp16/unfused_optimizer.py and runtime/engine.py, walked on real engines (bf16: 14 N
    resident + 2 N gradients + 4 N fp32 gradients + the fp64 norm of the largest tensor at the step). Memory model
    §W1-§O4.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from .computation import Adapters, Computation
from .ledger import ALWAYS, BACKWARDS, Device, Entry, Item, Ledger, Phase, Tensors
from .model import Model, Parameter, ParameterKind
from .transform import Setting
from .work import Resource, When, Work

ALL_REDUCE_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed 0.19.8 runtime/engine.py, MEMORY_OPT_ALLREDUCE_SIZE
NORM_BYTES = 8  # DeepSpeed 0.19.8 runtime/zero/utils.py, get_norm_dtype: gradients are cast to fp64, tensor by tensor
FP32 = 4
OPTIMIZER_UPDATE = "optimizer update"
GRADIENT_ALL_REDUCE = "all-reduce gradients"


NOTHING = Tensors(())


def baseline(setting: Setting) -> Ledger:
    """Full fine-tuning in bf16 with AdamW: what strategies start from. State lines are not yet written."""
    return Ledger(trainable=trained_tensors(setting.model, None), frozen=NOTHING, computation=Computation())


@lru_cache(maxsize=64)
def trained_tensors(model: Model, adapters: Adapters | None) -> Tensors:
    """Element counts of what is trained, in the order DeepSpeed flattens them.

    An adapter of rank r on a weight of fan_in x fan_out is A (r x fan_in) and B (fan_out x r).
    """
    if adapters is None:
        return Tensors(tuple(p.numel for p in model.parameters))
    return Tensors(
        tuple(n for block in model.blocks for p in adapters.adapted(block) for n in _adapter(p, adapters.rank))
    )


def _adapter(weight: Parameter, rank: int) -> tuple[int, int]:
    return rank * weight.fan_in, weight.fan_out * rank


@lru_cache(maxsize=64)
def frozen_tensors(model: Model) -> Tensors:
    """Element counts of the base model under LoRA."""
    return Tensors(tuple(p.numel for p in model.parameters))


@lru_cache(maxsize=64)
def unquantized_tensors(model: Model) -> Tensors:
    """What bitsandbytes leaves in 16 bit: everything but the nn.Linear weights of the blocks."""
    block = tuple(p.numel for b in model.blocks for p in b.parameters if p.kind is not ParameterKind.LINEAR)
    return Tensors(tuple(p.numel for p in model.embedding) + block + tuple(p.numel for p in model.head))


@lru_cache(maxsize=64)
def quantized_tensors(model: Model) -> Tensors:
    """What bitsandbytes turns into NF4: the nn.Linear weights of the blocks (lm_head is skipped by default)."""
    return Tensors(tuple(p.numel for b in model.blocks for p in b.parameters if p.kind is ParameterKind.LINEAR))


def layer_elements(model: Model) -> int:
    """Elements of the largest layer."""
    return max(block.numel for block, _ in model.distinct_blocks)


@lru_cache(maxsize=64)
def largest_module(model: Model) -> int:
    """Elements of the largest single tensor: what ZeRO-3 gathers whole, whatever its limits."""
    return max(p.numel for p in model.parameters)


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
    size = round(ledger.optimizer.state_bytes * elements)
    return Entry(
        Item.MOMENTS, device, size, tuple(p for p in Phase if p is not Phase.START), why, source=ledger.optimizer.source
    )


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


def update_traffic_bytes(ledger: Ledger, elements: int) -> float:
    """Bytes an optimizer step moves in memory: read and write master and states, read gradients, write weights.

    (2 (4 + states) + 4 + e) per element, plus turning e-byte gradients into fp32: e + 4.
    """
    element = ledger.computation.precision.bytes
    return elements * (2 * (FP32 + ledger.optimizer.state_bytes) + FP32 + element + element + FP32)


def replicated(ledger: Ledger, setting: Setting) -> Ledger:
    """Write the state lines of ZeRO stage 0, where every rank holds everything."""
    n, e = ledger.trainable.total, ledger.computation.precision.bytes
    low_precision = e < FP32
    why = f"{n:,} trained elements"
    flatten = e * min(n, ALL_REDUCE_BUCKET_ELEMENTS) if setting.world_size > 1 else 0
    temporaries = FP32 * n + NORM_BYTES * ledger.trainable.largest if low_precision else 0
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
            moments_entry(ledger, n, Device.GPU, f"{ledger.optimizer.state_bytes:g} B x {why}"),
            Entry(Item.GRADIENTS, Device.GPU, e * n, gradient_phases(setting), f"{e} B x {why}"),
            Entry(
                Item.IN_FLIGHT,
                Device.GPU,
                in_flight_bytes(ledger, setting),
                BACKWARDS,
                "largest layer, or the embedding",
            ),
            Entry(
                Item.STEP_TEMPORARIES,
                Device.GPU,
                max(temporaries, flatten),
                (Phase.STEP,),
                f"max(4 B x N + 8 B x largest tensor {ledger.trainable.largest:,}, all-reduce copy {flatten:,} B)",
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
                amount=e * n,
                when=When.STEP,
                once=True,
                message_bytes=e * min(n, ALL_REDUCE_BUCKET_ELEMENTS),
                source="DeepSpeed 0.19.8 runtime/engine.py, allreduce_gradients: after the last backward, no overlap",
            ),
        )
    )
