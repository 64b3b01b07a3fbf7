"""Optimizer states on the host, all of them or a share, or on NVMe.

Symbols as in zero.py. n is the rank's slice (stages 1 and 2) or partition (stage 3) of the trained elements.

Source:
    Ren et al. 2021 (arXiv:2101.06840); Rajbhandari et al. 2021 (arXiv:2104.07857); DeepSpeed 0.19.8
    runtime/zero/{stage_1_and_2,stage3,offload_config}.py and runtime/swap_tensor/, tensors of real engines walked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..planner.ledger import (
    ALWAYS,
    BACKWARDS,
    Device,
    Entry,
    Item,
    Ledger,
    Phase,
    flat_partition,
    tensor_partition,
    touched,
)
from ..planner.states import FP32, NORM_BYTES, OPTIMIZER_UPDATE, accumulating, update_traffic_bytes
from ..planner.transform import Setting
from ..planner.work import Resource, When, Work

GROUPS = 20  # sub-groups a rank's partition is cut into for a partial share, so that the share has steps of 5 %
CPU_ADAM_BYTES = (
    34  # host traffic per element: reads p, m, v, g in fp32, writes p, m, v; 16-bit copy: reads 4, writes 2
)
SWAP_BUFFER_COUNT = 4  # master, two moments, gradient; without pipelining
NVME_SUB_GROUP_ELEMENTS = 100_000_000
NORM_ELEMENTS = 250_000_000  # DeepSpeed 0.19.8 runtime/zero/stage3.py, _constant_buffered_norm2
NVME_BYTES = 16  # master, two moments, gradient in fp32, per element


def pinned(size: int) -> int:
    """Page-locked memory is rounded up to a power of two by torch's caching host allocator.

    Source:
        pytorch docs, torch.cuda.host_memory_stats; upper bound, since other back-ends allocate exactly.

    >>> pinned(5)
    8
    """
    return 1 << (size - 1).bit_length() if size else 0


@dataclass(frozen=True, slots=True)
class OffloadOptimizer:
    """Master weights and states leave the GPU; the CPU (or NVMe through the CPU) updates them.

    ``groups_on_host`` of GROUPS sub-groups go to the host (DeepSpeed's ``ratio``, stage 3 only); the others stay.

    >>> OffloadOptimizer("cpu", groups_on_host=12).ratio
    0.6
    """

    device: str = "cpu"
    groups_on_host: int = GROUPS
    rank = 60

    @property
    def name(self) -> str:
        """As typed after --require."""
        return f"offload-optimizer-{self.device}"

    @property
    def ratio(self) -> float:
        """Share of the sub-groups on the host."""
        return self.groups_on_host / GROUPS

    @property
    def partial(self) -> bool:
        """Whether some sub-groups stay on the GPU."""
        return self.groups_on_host < GROUPS

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
            return _on_nvme(ledger, setting)
        return self._sharded(ledger, setting) if ledger.stage == 3 else _flat(ledger, setting)

    def _sharded(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Stage 3: master, states, fp32 gradients and the gradient buffer on the host."""
        e, part = ledger.computation.precision.bytes, tensor_partition(ledger.trainable, setting.world_size)
        host = -(-part * self.groups_on_host // GROUPS)
        group = -(-part // GROUPS) + -(-ledger.trainable.largest // setting.world_size)
        stay = min(part - host + group, part) if self.partial else 0  # sub-groups are whole tensors: one may lean over
        why = f"{host:,} of {part:,} elements a rank"
        left = ledger.without(Item.MASTER, Item.MOMENTS, Item.GRADIENTS, Item.STEP_TEMPORARIES)
        keys: dict[str, Any] = {"offload_optimizer": {"device": "cpu", "pin_memory": True, "ratio": self.ratio}}
        if self.partial:
            keys["sub_group_size"] = max(1, part // GROUPS)
        return (
            left.plus(
                *_host_states(ledger, min(host + group, part) if self.partial else host, why, master_pinned=False),
                _pinned_entry(Item.GRADIENTS, e * part, f"{e} B x {part:,}, pinned"),
                _partition_norm(ledger, setting),
                Entry(Item.MASTER, Device.GPU, FP32 * stay, ALWAYS, f"4 B x {stay:,} elements that stay"),
                Entry(
                    Item.MOMENTS,
                    Device.GPU,
                    round(ledger.optimizer.state_bytes * stay),
                    ALWAYS,
                    f"{stay:,} elements that stay",
                ),
                Entry(
                    Item.STEP_TEMPORARIES,
                    Device.GPU,
                    FP32 * (stay + group if stay else 0),
                    (Phase.STEP,),
                    "fp32 gradients of what stays",
                ),
            )
            .not_doing(OPTIMIZER_UPDATE)
            .doing(*_cpu_update(host), *_stage3_traffic(ledger, setting, part), *_gpu_update(ledger, part - host))
            .keys(zero_optimization=keys, optimizer=_cpu_adam(ledger))
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
        Entry(
            Item.MOMENTS,
            Device.HOST,
            round(ledger.optimizer.state_bytes * elements),
            ALWAYS,
            f"{ledger.optimizer.state_bytes:g} B x {why}",
        ),
    )


def _flat(ledger: Ledger, setting: Setting) -> Ledger:
    """Stages 1 and 2: 18 bytes per element of the slice on the host, staging buffers on both sides."""
    e, d = ledger.computation.precision.bytes, setting.world_size
    part, largest = flat_partition(ledger.trainable, d), ledger.trainable.largest
    why = f"{part:,} elements of the slice"
    bucket = next(x for x in ledger.entries if x.item is Item.REDUCE_BUCKET)
    keys = {"offload_optimizer": {"device": "cpu", "pin_memory": True}, "overlap_comm": False}
    types = {"grad_accum_dtype": ledger.computation.precision.value}
    norm = NORM_BYTES * min(largest, part)
    return (
        ledger.without(
            Item.MASTER, Item.MOMENTS, Item.STEP_TEMPORARIES, Item.GRADIENTS, Item.ACCUMULATED, Item.REDUCE_BUCKET
        )
        .plus(
            replace(bucket, bytes=bucket.bytes // 2, why="one bucket: overlap_comm is off with offload"),
            *_host_states(ledger, part, why, master_pinned=True),
            _pinned_entry(Item.WEIGHTS_HOST_COPY, e * part, f"{e} B x {why}, pinned"),
            _pinned_entry(Item.OFFLOAD_STAGING, e * largest, f"{e} B x largest tensor {largest:,}, pinned"),
            Entry(Item.OFFLOAD_STAGING, Device.GPU, e * largest, ALWAYS, f"{e} B x largest tensor {largest:,}"),
            Entry(Item.NORM_TEMPORARY, Device.GPU, norm, BACKWARDS, f"8 B x {norm // NORM_BYTES:,} elements"),
            *_earlier_gradients(ledger, setting),
        )
        .not_doing(OPTIMIZER_UPDATE)
        .doing(*_cpu_update(part), *_flat_traffic(ledger, setting, part))
        .keys(zero_optimization=keys, optimizer=_cpu_adam(ledger), data_types=types)
    )  # fmt: skip


def _earlier_gradients(ledger: Ledger, setting: Setting) -> tuple[Entry, ...]:
    """Stage 1 keeps whole gradients on the GPU until the last micro-step; stage 2 gathers its tensors on the host.

    Without overlap_comm stage 1 reduces after the backward pass, so that gradients are whole with one micro-step too.
    """
    e, trainable = ledger.computation.precision.bytes, ledger.trainable
    if ledger.stage == 1:
        phases = (Phase.FORWARD, Phase.LOSS, *BACKWARDS) if accumulating(setting) else (Phase.BACKWARD_END,)
        return (Entry(Item.GRADIENTS, Device.GPU, e * trainable.total, phases, f"{e} B x {trainable.total:,}, whole"),)
    earlier = e * touched(trainable, setting.world_size) if accumulating(setting) else 0
    return (_pinned_entry(Item.ACCUMULATED, earlier, "16-bit gradients of earlier micro-steps, pinned"),)


def _cpu_update(elements: int) -> tuple[Work, ...]:
    return (
        Work(
            name="CPU optimizer",
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


def _flat_traffic(ledger: Ledger, setting: Setting, part: int) -> tuple[Work, ...]:
    """fp32 gradients down once, weights up once; stage 2 accumulates on the host, down and up every micro-step."""
    e = ledger.computation.precision.bytes
    on_host = ledger.stage == 2 and accumulating(setting)
    per_micro = float(e * touched(ledger.trainable, setting.world_size)) if on_host else 0.0
    return (
        Work(
            name="gradients to host",
            resource=Resource.GPU_TO_HOST,
            amount=FP32 * part,
            when=When.BACKWARD,
            once=True,
            side=True,
        ),
        Work(
            name="accumulate gradients on host",
            resource=Resource.GPU_TO_HOST,
            amount=per_micro,
            when=When.BACKWARD,
            side=True,
        ),
        Work(
            name="accumulated gradients from host",
            resource=Resource.HOST_TO_GPU,
            amount=per_micro,
            when=When.BACKWARD,
            side=True,
        ),
        Work(
            name="updated weights from host", resource=Resource.HOST_TO_GPU, amount=e * part, when=When.STEP, once=True
        ),
    )


def _stage3_traffic(ledger: Ledger, setting: Setting, part: int) -> tuple[Work, ...]:
    """The gradient buffer travels to the GPU and back in every micro-step, the first included."""
    e = ledger.computation.precision.bytes
    return (
        Work(name="gradients to host", resource=Resource.GPU_TO_HOST, amount=e * part, when=When.BACKWARD, side=True),
        Work(
            name="accumulated gradients from host",
            resource=Resource.HOST_TO_GPU,
            amount=e * part,
            when=When.BACKWARD,
            side=True,
        ),
        Work(
            name="fp32 gradients to host",
            resource=Resource.GPU_TO_HOST,
            amount=FP32 * part,
            when=When.BACKWARD,
            once=True,
            side=True,
        ),
        Work(
            name="updated weights from host", resource=Resource.HOST_TO_GPU, amount=e * part, when=When.STEP, once=True
        ),
    )


def _on_nvme(ledger: Ledger, setting: Setting) -> Ledger:
    """Stage 3: 16 bytes per element on NVMe, swapped through pinned buffers; read and written once per step."""
    e, d = ledger.computation.precision.bytes, setting.world_size
    part = tensor_partition(ledger.trainable, d)
    group = min(part, NVME_SUB_GROUP_ELEMENTS + -(-ledger.trainable.largest // d))
    buffers = SWAP_BUFFER_COUNT * FP32 * group
    moved = float(NVME_BYTES * part)
    return (
        ledger.without(Item.MASTER, Item.MOMENTS, Item.GRADIENTS, Item.STEP_TEMPORARIES)
        .plus(
            Entry(Item.MASTER, Device.NVME, FP32 * part, ALWAYS, f"4 B x {part:,}"),
            Entry(Item.MOMENTS, Device.NVME, 2 * FP32 * part, ALWAYS, f"8 B x {part:,}"),
            Entry(Item.GRADIENTS_HOST, Device.NVME, FP32 * part, ALWAYS, f"4 B x {part:,}"),
            _pinned_entry(Item.SWAP_BUFFERS, buffers, f"{SWAP_BUFFER_COUNT} x 4 B x sub-group {group:,}, pinned"),
            _pinned_entry(Item.GRADIENTS, e * part, f"{e} B x {part:,}, pinned"),
        )
        .not_doing(OPTIMIZER_UPDATE)
        .doing(
            *_cpu_update(part),
            *_stage3_traffic(ledger, setting, part),
            Work(name="states from NVMe", resource=Resource.NVME_READ, amount=moved, when=When.STEP, once=True),
            Work(name="states to NVMe", resource=Resource.NVME_WRITE, amount=moved, when=When.STEP, once=True),
        )
        .keys(
            zero_optimization={
                "sub_group_size": NVME_SUB_GROUP_ELEMENTS,
                "offload_optimizer": {
                    "device": "nvme",
                    "nvme_path": setting.nvme_path,
                    "pin_memory": True,
                    "buffer_count": SWAP_BUFFER_COUNT,
                    "pipeline_read": False,
                    "pipeline_write": False,
                    "fast_init": False,
                },
            },
            optimizer=_cpu_adam(ledger),
            aio=AIO,
        )
    )


# run with these values on a real engine; DeepSpeed 0.19.8 tutorials name them as starting points for NVMe
AIO = {
    "block_size": 1_048_576,
    "queue_depth": 32,
    "intra_op_parallelism": 2,
    "single_submit": False,
    "overlap_events": True,
}
