"""Optimizer states on the host, all of them or a share, or on NVMe.

Symbols as in zero.py. n is the rank's slice (stages 1 and 2) or partition (stage 3) of the trained elements.

Source:
    Ren et al. 2021 (arXiv:2101.06840); Rajbhandari et al. 2021 (arXiv:2104.07857); DeepSpeed 0.19.8
    runtime/zero/{stage_1_and_2,stage3,offload_config}.py and runtime/swap_tensor/, tensors of real engines walked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ..planner.gathering import reduce_bucket_elements
from ..planner.ledger import (
    ALWAYS,
    BACKWARDS,
    SINCE_THE_FIRST_STEP,
    TRAINING,
    Device,
    Entry,
    Item,
    Ledger,
    Phase,
    flat_partition,
    tensor_partition,
    touched,
)
from ..planner.states import (
    CPU_OPTIMIZER,
    FP32,
    GRADIENT_ALL_REDUCE,
    NORM_BYTES,
    OPTIMIZER_UPDATE,
    STATES_READ,
    STATES_WRITTEN,
    SUB_GROUP_ELEMENTS,
    UPDATED_WEIGHTS,
    accumulates_in_fp32,
    accumulating,
    accumulation_bytes,
    bypassing_entry,
    hooking_bytes,
    moments_entry,
    pinned,
    sub_groups,
    update_traffic_bytes,
)
from ..planner.transform import Setting
from ..planner.whole_model import with_whole_model
from ..planner.work import Resource, When, Work
from ..planner.workload import Precision

GROUPS = 20  # sub-groups a rank's partition is cut into for a partial share, so that the share has steps of 5 %
CPU_ADAM_BYTES = (
    34  # host traffic per element: reads p, m, v, g in fp32, writes p, m, v; 16-bit copy: reads 4, writes 2
)
SWAP_BUFFER_COUNT = 4  # master, two moments, gradient; without pipelining
NVME_SUB_GROUP_ELEMENTS = 100_000_000
NORM_ELEMENTS = 250_000_000  # DeepSpeed 0.19.8 runtime/zero/stage3.py, _constant_buffered_norm2
NVME_READ_BYTES = 16  # master, two moments, gradient in fp32, per element, at the step
NVME_WRITTEN_BYTES = 12  # without the gradient, at the step
RATIO_DENOMINATOR = 1000  # a ratio is read as the nearest fraction with a denominator up to this: 0.6 is 3/5
# copies to and from memory that is not page-locked, either way at the rate that was measured up
UNPINNED = {Resource.HOST_TO_GPU: Resource.PAGEABLE_TO_GPU, Resource.GPU_TO_HOST: Resource.PAGEABLE_TO_GPU}


@dataclass(frozen=True, slots=True)
class OffloadOptimizer:
    """Master weights and states leave the GPU; the CPU (or NVMe through the CPU) updates them.

    ``groups_on_host`` of GROUPS sub-groups go to the host (DeepSpeed's ``ratio``, stage 3 only); the others stay. The
    other fields are those of a configuration that is judged.

    >>> OffloadOptimizer("cpu", groups_on_host=12).ratio
    0.6
    """

    device: str = "cpu"
    groups_on_host: int = GROUPS
    given_ratio: float | None = None
    pin_memory: bool = True
    buffer_count: int = SWAP_BUFFER_COUNT
    rank = 60

    @property
    def name(self) -> str:
        """As typed after --require."""
        return f"offload-optimizer-{self.device}"

    @property
    def ratio(self) -> float:
        """Share of the sub-groups on the host."""
        return self.groups_on_host / GROUPS if self.given_ratio is None else self.given_ratio

    @property
    def partial(self) -> bool:
        """Whether some sub-groups stay on the GPU."""
        return self.ratio < 1

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"offload_optimizer": self.device, "partial_share": self.partial}

    def accepts(self, setting: Setting) -> str | None:
        """A share must be cut into sub-groups."""
        if not 1 <= self.groups_on_host <= GROUPS:
            return f"{self.groups_on_host} of {GROUPS} sub-groups; allowed are 1 to {GROUPS}"
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Move the states."""
        if self.device == "nvme":
            return self._told(_on_nvme(ledger, setting, self.buffer_count))
        return self._told(self._sharded(ledger, setting) if ledger.stage == 3 else _flat(ledger, setting))

    def _told(self, ledger: Ledger) -> Ledger:
        """Without page-locked memory nothing is rounded up, and copies go through the driver's own buffers."""
        if self.pin_memory:
            return ledger
        entries = tuple(replace(e, upper=0) if e.device is Device.HOST else e for e in ledger.entries)
        work = tuple(replace(w, resource=UNPINNED.get(w.resource, w.resource)) for w in ledger.work)
        keys = {"offload_optimizer": {"pin_memory": False}}
        return replace(ledger, entries=entries, work=work).keys(zero_optimization=keys)

    def _share(self, part: int, divided: bool) -> int:
        """Elements on the host: the share itself; of a configuration's single sub-group all."""
        if self.given_ratio is None:
            return -(-part * self.groups_on_host // GROUPS)
        return math.ceil(part * Fraction(self.ratio).limit_denominator(RATIO_DENOMINATOR)) if divided else part

    def _sharded(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Stage 3: master, states, fp32 gradients and the gradient buffer on the host; of a share what stays, too.

        What is written as work is the share itself: sub-groups follow it in steps.
        """
        a, part = accumulation_bytes(ledger), tensor_partition(ledger.trainable, setting.world_size)
        chosen = max(1, part // GROUPS) if self.partial else SUB_GROUP_ELEMENTS
        size = ledger.knobs.sub_group or chosen
        groups = sub_groups(ledger.trainable, setting.world_size, size)
        first = int((1 - self.ratio) * len(groups))  # as DeepSpeed rounds it: stage3.py, _create_fp32_partitions
        share = self._share(part, len(groups) > 1)
        most = min(part, share + max(groups)) if self.partial else part
        left = ledger.without(
            Item.MASTER,
            Item.MOMENTS,
            Item.GRADIENTS,
            Item.STEP_TEMPORARIES,
            Item.PERSISTENT,
            Item.FLATTENING,  # fp32 copies are made on the host
        )
        keys: dict[str, Any] = {"offload_optimizer": {"device": "cpu", "pin_memory": True, "ratio": self.ratio}}
        if self.partial:
            keys["sub_group_size"] = size
            left = replace(left, knobs=replace(left.knobs, sub_group=size))
        moved = (
            left.plus(
                *_grouped_states(ledger, groups[first:], most),
                _pinned_entry(Item.GRADIENTS, a * part, f"{a} B x {part:,}, pinned"),
                _overflow_entry(ledger, part),
                _partition_norm(ledger, setting),
                *_gathered_after_the_step(ledger),
                _hooking(ledger, setting),
                *_staying(ledger, groups[:first], min(part, part - share + max(groups)) if self.partial else 0),
            )
            .not_doing(OPTIMIZER_UPDATE)
            .doing(*_cpu_update(share), *_stage3_traffic(ledger, part, share), *_gpu_update(ledger, part - share))
            .keys(zero_optimization=keys, optimizer=_cpu_adam(ledger))
        )
        return with_whole_model(moved, setting) if ledger.computation.quantized else moved


def _grouped_states(ledger: Ledger, groups: tuple[int, ...], most: int) -> tuple[Entry, ...]:
    """Master, fp32 gradient and states of the sub-groups on the host; each gradient is pinned on its own.

    Args:
        ledger: the optimizer.
        groups: elements of each sub-group.
        most: elements that a smooth share may reach, for the upper bound.
    """
    elements = sum(groups)
    why = f"{elements:,} elements in {len(groups)} sub-groups"
    states, width = ledger.optimizer.host_bytes, FP32
    rounded = sum(pinned(width * group) for group in groups)
    gradients = Entry(
        Item.GRADIENTS_HOST,
        Device.HOST,
        width * elements,
        ALWAYS,
        f"4 B x {why}, pinned",
        upper=max(rounded, width * most),
    )
    return (
        Entry(Item.MASTER, Device.HOST, width * elements, ALWAYS, f"4 B x {why}", upper=width * most),
        gradients,
        replace(moments_entry(ledger, elements, Device.HOST, f"{states:g} B x {why}"), upper=round(states * most)),
    )


def _staying(ledger: Ledger, groups: tuple[int, ...], most: int) -> tuple[Entry, ...]:
    """Master, fp32 gradient and states of the sub-groups that stay on the GPU, where torch's AdamW updates them.

    It is told neither fused nor foreach, so that it picks foreach, which keeps one temporary of a sub-group; a loop
    over tensors keeps two.
    """
    elements, largest = sum(groups), max(groups, default=0)
    why, states = f"{elements:,} elements that stay", ledger.optimizer.state_bytes
    return (
        Entry(Item.MASTER, Device.GPU, FP32 * elements, ALWAYS, f"4 B x {why}", upper=FP32 * most),
        Entry(Item.GRADIENTS_HOST, Device.GPU, FP32 * elements, ALWAYS, f"4 B x {why}, fp32", upper=FP32 * most),
        replace(moments_entry(ledger, elements, Device.GPU, why), upper=round(states * most)),
        Entry(
            Item.STEP_TEMPORARIES,
            Device.GPU,
            FP32 * largest,
            (Phase.STEP,),
            f"4 B x sub-group {largest:,}: square roots in torch's AdamW",
            upper=2 * FP32 * largest,
        ),
    )


def _overflow_entry(ledger: Ledger, elements: int) -> Entry:
    """fp16: a flag for each gradient, as the step looks for infinities.

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage3.py, has_overflow; walked. bf16 asks the norm instead.
    """
    flags = elements if ledger.computation.precision is Precision.FP16 else 0
    return Entry(Item.STEP_TEMPORARIES, Device.HOST, flags, (Phase.STEP,), f"1 B x {elements:,}: is it finite")


def _hooking(ledger: Ledger, setting: Setting) -> Entry:
    """What start-up gathers."""
    size = hooking_bytes(ledger, setting)
    return Entry(Item.FLATTENING, Device.GPU, size, (Phase.START,), "one tensor gathered whole")


def _gathered_after_the_step(ledger: Ledger) -> tuple[Entry, ...]:
    """Small tensors are gathered again at the end of the step, where now nothing else has been freed for them."""
    return tuple(
        replace(entry, phases=(*entry.phases, Phase.STEP))
        for entry in ledger.entries
        if entry.item is Item.PERSISTENT and Phase.FORWARD in entry.phases
    )


def _partition_norm(ledger: Ledger, setting: Setting) -> Entry:
    """Stage 3 takes the norm of a gradient's partition as it leaves the GPU, NORM_ELEMENTS at a time in fp64."""
    piece = min(-(-ledger.trainable.largest // setting.world_size), NORM_ELEMENTS)
    why = f"8 B x {piece:,} elements of a partition"
    return Entry(Item.NORM_TEMPORARY, Device.GPU, NORM_BYTES * piece, BACKWARDS, why)


def _cpu_adam(ledger: Ledger) -> dict[str, Any]:
    """The CPU kernel takes neither of the GPU's options; None takes a key away."""
    return {"params": {"torch_adam": None, "fused": None}} if ledger.optimizer.deepspeed == "AdamW" else {}


def _pinned_entry(item: Item, size: int, why: str) -> Entry:
    return Entry(item, Device.HOST, size, ALWAYS, why, upper=pinned(size))


def _host_states(ledger: Ledger, elements: int, why: str, *, master_pinned: bool) -> tuple[Entry, ...]:
    """Master, its fp32 gradient (pinned) and the states of these elements."""
    master = FP32 * elements
    return (
        Entry(Item.MASTER, Device.HOST, master, ALWAYS, f"4 B x {why}", upper=pinned(master) if master_pinned else 0),
        _pinned_entry(Item.GRADIENTS_HOST, FP32 * elements, f"4 B x {why}, pinned"),
        moments_entry(ledger, elements, Device.HOST, f"{ledger.optimizer.host_bytes:g} B x {why}"),
    )


def _flat(ledger: Ledger, setting: Setting) -> Ledger:
    """Stages 1 and 2: 18 bytes per element of the slice on the host, staging buffers on both sides."""
    e, d = ledger.computation.precision.bytes, setting.world_size
    part, largest = flat_partition(ledger.trainable, d), ledger.trainable.largest
    why = f"{part:,} elements of the slice"
    asked = ledger.knobs.overlap_comm is True  # trainplan's own choice is one bucket
    keys = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "overlap_comm": asked}
    types = {"grad_accum_dtype": (ledger.accumulation or ledger.computation.precision).value}
    norm = NORM_BYTES * min(largest, part)
    return (
        ledger.without(
            Item.MASTER, Item.MOMENTS, Item.STEP_TEMPORARIES, Item.GRADIENTS, Item.ACCUMULATED, Item.REDUCE_BUCKET
        )
        .plus(
            *_buckets(ledger),
            *_host_states(ledger, part, why, master_pinned=True),
            _pinned_entry(Item.WEIGHTS_HOST_COPY, e * part, f"{e} B x {why}, pinned"),
            _pinned_entry(Item.OFFLOAD_STAGING, e * largest, f"{e} B x largest tensor {largest:,}, pinned"),
            Entry(Item.OFFLOAD_STAGING, Device.GPU, e * largest, ALWAYS, f"{e} B x largest tensor {largest:,}"),
            Entry(Item.NORM_TEMPORARY, Device.GPU, norm, BACKWARDS, f"8 B x {norm // NORM_BYTES:,} elements"),
            *_earlier_gradients(ledger, setting),
        )
        .not_doing(OPTIMIZER_UPDATE, GRADIENT_ALL_REDUCE)
        .doing(*_cpu_update(part), *_flat_traffic(ledger, setting, part), *_reductions(ledger, waited=not asked))
        .keys(zero_optimization=keys, optimizer=_cpu_adam(ledger), data_types=types)
    )  # fmt: skip


def _buckets(ledger: Ledger) -> tuple[Entry, ...]:
    """Reduce buckets beside offload: one, unless a configuration says overlap_comm, or said that it is off before."""
    found = tuple(entry for entry in ledger.entries if entry.item is Item.REDUCE_BUCKET)
    if ledger.knobs.overlap_comm is not None:
        return found
    return tuple(replace(e, bytes=e.bytes // 2, why="one bucket: overlap_comm is off with offload") for e in found)


def _earlier_gradients(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Stage 1 keeps whole gradients on the GPU until the last micro-step; stage 2 gathers its tensors on the host.

    Without overlap_comm stage 1 reduces after the backward pass, so that gradients are whole with one micro-step too.
    """
    e, trainable = ledger.computation.precision.bytes, ledger.trainable
    if accumulates_in_fp32(ledger):
        part = flat_partition(trainable, setting.world_size)
        held = TRAINING if accumulating(setting) else (*BACKWARDS, Phase.STEP)
        return (Entry(Item.GRADIENTS, Device.GPU, FP32 * part, held, f"4 B x slice {part:,}, on the GPU"),)
    if ledger.stage == 1:
        if ledger.knobs.overlap_comm and not accumulating(setting):
            return (bypassing_entry(ledger, reduce_bucket_elements(setting.model, ledger.knobs), setting.world_size),)
        phases = (Phase.FORWARD, Phase.LOSS, *BACKWARDS) if accumulating(setting) else (Phase.BACKWARD_END,)
        return (Entry(Item.GRADIENTS, Device.GPU, e * trainable.total, phases, f"{e} B x {trainable.total:,}, whole"),)
    earlier = e * touched(trainable, setting.world_size) if accumulating(setting) else 0
    pinned_tensors = _pinned_entry(Item.ACCUMULATED, earlier, "gradients of earlier micro-steps, pinned")
    return (replace(pinned_tensors, phases=SINCE_THE_FIRST_STEP),)


def _cpu_update(elements: int) -> tuple[Work, ...]:
    return (
        Work(
            name=CPU_OPTIMIZER,
            resource=Resource.HOST_MEMORY,
            amount=CPU_ADAM_BYTES * elements,
            when=When.STEP,
            once=True,
            source="arithmetic; DeepSpeed 0.19.8 csrc/adam/cpu_adam.cpp",
        ),
    )


def _gpu_update(ledger: Ledger, elements: int) -> tuple[Work, ...]:
    return (
        Work(
            name=OPTIMIZER_UPDATE,
            resource=Resource.MEMORY,
            amount=update_traffic_bytes(ledger, elements),
            when=When.STEP,
            once=True,
        ),
    )


def _reductions(ledger: Ledger, *, waited: bool) -> tuple[Work, ...]:
    """Reductions of gradients: without overlap_comm the backward pass waits for each."""
    return tuple(replace(work, side=not waited) for work in ledger.work if work.name == GRADIENT_ALL_REDUCE)


def _flat_traffic(ledger: Ledger, setting: Setting, part: int) -> tuple[Work, ...]:
    """fp32 gradients down once, weights up once; stage 2 accumulates on the host, down and up every micro-step.

    The copies run on the stream of the backward pass itself, so that nothing hides them.

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py, ``reduce_ipg_grads``: "copy_grad_stream is disabled".
    """
    e = ledger.computation.precision.bytes
    on_host = ledger.stage == 2 and accumulating(setting) and not accumulates_in_fp32(ledger)
    per_micro = float(e * touched(ledger.trainable, setting.world_size)) if on_host else 0.0
    return (
        Work(
            name="gradients to host",
            resource=Resource.GPU_TO_HOST,
            amount=FP32 * part,
            when=When.BACKWARD,
            once=True,
        ),
        Work(
            name="accumulate gradients on host",
            resource=Resource.GPU_TO_HOST,
            amount=per_micro,
            when=When.BACKWARD,
        ),
        Work(
            name="accumulated gradients from host",
            resource=Resource.HOST_TO_GPU,
            amount=per_micro,
            when=When.BACKWARD,
        ),
        Work(name=UPDATED_WEIGHTS, resource=Resource.HOST_TO_GPU, amount=e * part, when=When.STEP, once=True),
    )


def _stage3_traffic(ledger: Ledger, part: int, share: int) -> tuple[Work, ...]:
    """The gradient buffer travels to the GPU and back in every micro-step, the first included.

    The stream of reductions does it, beside the backward pass. Of a share of the optimizer only that share's fp32
    gradients and weights travel. Updated weights are cast on the host into memory that is not pinned, one sub-group
    after the other.

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage3.py, ``partition_grads``, ``_reassign_or_swap_out_partitioned_parameters``;
        torch 2.13.0 aten/src/ATen/native/cuda/Copy.cu: a blocking copy casts where the source is.
    """
    e, a = ledger.computation.precision.bytes, accumulation_bytes(ledger)
    return (
        Work(name="gradients to host", resource=Resource.GPU_TO_HOST, amount=a * part, when=When.BACKWARD, side=True),
        Work(
            name="accumulated gradients from host",
            resource=Resource.HOST_TO_GPU,
            amount=a * part,
            when=When.BACKWARD,
            side=True,
        ),
        Work(
            name="fp32 gradients to host",
            resource=Resource.GPU_TO_HOST,
            amount=FP32 * share,
            when=When.BACKWARD,
            once=True,
            side=True,
        ),
        Work(name=UPDATED_WEIGHTS, resource=Resource.PAGEABLE_TO_GPU, amount=e * share, when=When.STEP, once=True),
    )


def _on_nvme(ledger: Ledger, setting: Setting, buffer_count: int) -> Ledger:
    """Stage 3: 16 bytes per element on NVMe, swapped through pinned buffers; read and written once per step."""
    e, d = ledger.computation.precision.bytes, setting.world_size
    part = tensor_partition(ledger.trainable, d)
    size = ledger.knobs.sub_group or NVME_SUB_GROUP_ELEMENTS
    group = min(part, size + -(-ledger.trainable.largest // d))
    buffers = buffer_count * FP32 * group
    swapped = (
        ledger.without(Item.MASTER, Item.MOMENTS, Item.GRADIENTS, Item.STEP_TEMPORARIES)
        .plus(
            Entry(Item.MASTER, Device.NVME, FP32 * part, ALWAYS, f"4 B x {part:,}"),
            Entry(Item.MOMENTS, Device.NVME, 2 * FP32 * part, ALWAYS, f"8 B x {part:,}"),
            Entry(Item.GRADIENTS_HOST, Device.NVME, FP32 * part, ALWAYS, f"4 B x {part:,}"),
            _pinned_entry(Item.SWAP_BUFFERS, buffers, f"{buffer_count} x 4 B x sub-group {group:,}, pinned"),
            _pinned_entry(Item.GRADIENTS, e * part, f"{e} B x {part:,}, pinned"),
        )
        .not_doing(OPTIMIZER_UPDATE)
        .doing(
            *_cpu_update(part),
            *_stage3_traffic(ledger, part, part),
            *_swaps(part),
        )
        .keys(
            zero_optimization={
                "sub_group_size": size,
                "offload_optimizer": {
                    "device": "nvme",
                    "nvme_path": setting.nvme_path,
                    "pin_memory": True,
                    "buffer_count": buffer_count,
                    "pipeline_read": False,
                    "pipeline_write": False,
                    "fast_init": False,
                },
            },
            optimizer=_cpu_adam(ledger),
            aio=AIO,
        )
    )
    return with_whole_model(swapped, setting) if ledger.computation.quantized else swapped


def _swaps(part: int) -> tuple[Work, ...]:
    """Gradients are written as the backward pass makes them; states are read and written back at the step.

    Source:
        DeepSpeed 0.19.8 runtime/swap_tensor/, bytes counted on a real engine: 16 read and 16 written, four of them
        gradients.
    """
    read, written = float(NVME_READ_BYTES * part), float(NVME_WRITTEN_BYTES * part)
    return (
        Work(
            name="gradients to NVMe",
            resource=Resource.NVME_WRITE,
            amount=float(FP32 * part),
            when=When.BACKWARD,
            once=True,
            side=True,
        ),
        Work(name=STATES_READ, resource=Resource.NVME_READ, amount=read, when=When.STEP, once=True),
        Work(name=STATES_WRITTEN, resource=Resource.NVME_WRITE, amount=written, when=When.STEP, once=True),
    )


# run with these values on a real engine; DeepSpeed 0.19.8 tutorials name them as starting points for NVMe
AIO = {
    "block_size": 1_048_576,
    "queue_depth": 32,
    "intra_op_parallelism": 2,
    "single_submit": False,
    "overlap_events": True,
}
