"""Parameter partitions of ZeRO-3 on the host or on NVMe.

Source:
    Rajbhandari et al. 2021 (arXiv:2104.07857); DeepSpeed 0.19.8 runtime/zero/stage3.py and
    runtime/swap_tensor/partitioned_param_swapper.py, tensors of real engines walked. Memory model §W1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..planner.gathering import gathered_entries
from ..planner.ledger import ALWAYS, Device, Entry, Item, Ledger, tensor_partition
from ..planner.states import OPTIMIZER_UPDATE, UPDATED_WEIGHTS, largest_module
from ..planner.transform import Setting
from ..planner.work import Resource, When, Work

NVME_BUFFER_COUNT = 5  # DeepSpeed 0.19.8 offload_config.py, the default
BUFFER_ALIGNMENT = 1_000_000  # elements a buffer's size is rounded up to


@dataclass(frozen=True, slots=True)
class OffloadParameters:
    """Weights leave the GPU and come back layer by layer, in forward and in backward of every micro-step.

    >>> OffloadParameters("cpu").name
    'offload-parameters-cpu'
    """

    device: str = "cpu"
    buffer_count: int = NVME_BUFFER_COUNT  # of a configuration that is judged, as the next two
    buffer_size: int | None = None  # elements; None: as large as the largest partition needs
    max_in_cpu: int = 0  # elements that stay in RAM
    rank = 61

    @property
    def name(self) -> str:
        """As typed after --require."""
        return f"offload-parameters-{self.device}"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"offload_parameters": self.device}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting; the compatibility table names the stages."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Move the partitions; the pinned per-tensor copies made at start-up are not given back to the system."""
        e, d = ledger.computation.precision.bytes, setting.world_size
        trained, frozen = (e * tensor_partition(tensors, d) for tensors in (ledger.trainable, ledger.frozen))
        size = trained + frozen
        copied = gathered_entries(ledger, setting) if d == 1 else ()  # more ranks gather in any case
        left = ledger.without(Item.WEIGHTS, Item.FROZEN).plus(*copied).not_doing(UPDATED_WEIGHTS)
        left = left.doing(*_traffic(self.device, size), *_updated(left, trained))
        if self.device == "cpu":
            why = "pinned; start-up holds every tensor's own copy too"
            return left.plus(
                Entry(Item.WEIGHTS, Device.HOST, trained, ALWAYS, why, upper=2 * trained),
                Entry(Item.FROZEN, Device.HOST, frozen, ALWAYS, "pinned tensor by tensor", upper=2 * frozen),
            ).keys(zero_optimization={"offload_param": {"device": "cpu", "pin_memory": True}})
        return _on_nvme(left, setting, size, self)


def smallest_buffer(setting: Setting) -> int:
    """Elements a swap buffer must have: the largest tensor's partition, rounded up."""
    piece = -(-largest_module(setting.model) // setting.world_size)
    return -(-piece // BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT


def _on_nvme(ledger: Ledger, setting: Setting, size: int, told: OffloadParameters) -> Ledger:
    """No prefetch: 0.19.8 crashes in the second step with it; max_in_cpu 0, so that RAM holds the buffers alone."""
    e = ledger.computation.precision.bytes
    buffer = smallest_buffer(setting) if told.buffer_size is None else told.buffer_size
    pinned, kept = told.buffer_count * buffer * e, min(size, told.max_in_cpu * e)
    window = next(x for x in ledger.entries if x.item is Item.GATHERED)
    keys: dict[str, Any] = {
        "stage3_prefetch_bucket_size": 0,
        "offload_param": {
            "device": "nvme",
            "nvme_path": setting.nvme_path,
            "pin_memory": True,
            "buffer_count": told.buffer_count,
            "buffer_size": buffer,
            "max_in_cpu": told.max_in_cpu,
        },
    }
    return (
        ledger.without(Item.GATHERED)
        .plus(
            replace(window, why=f"{window.why}; upper bound, since nothing is fetched ahead"),
            Entry(Item.WEIGHTS, Device.NVME, size - kept, ALWAYS, f"{size - kept:,} B a rank"),
            Entry(Item.WEIGHTS, Device.HOST, kept, ALWAYS, f"max_in_cpu {told.max_in_cpu:,}, pinned", upper=2 * kept),
            Entry(
                Item.SWAP_BUFFERS,
                Device.HOST,
                pinned,
                ALWAYS,
                f"{told.buffer_count} x {e} B x {buffer:,}, pinned",
                upper=2 * pinned,
            ),
        )
        .keys(zero_optimization=keys)
    )


def _updated(ledger: Ledger, trained: int) -> tuple[Work, ...]:
    """Weights that the GPU updates go back to the host; those the CPU updates are there."""
    if all(work.name != OPTIMIZER_UPDATE for work in ledger.work):
        return ()
    name = "updated weights to host"
    return (Work(name=name, resource=Resource.GPU_TO_HOST, amount=float(trained), when=When.STEP, once=True),)


def _traffic(device: str, size: int) -> tuple[Work, ...]:
    """Down the host link (and from NVMe) for forward and for backward; updated weights go back once."""
    amount = float(size)
    link = tuple(
        Work(
            name=f"parameters from host, {when.value}",
            resource=Resource.HOST_TO_GPU,
            amount=amount,
            when=when,
            side=True,
        )
        for when in (When.FORWARD, When.BACKWARD)
    )
    if device == "cpu":
        return link
    reads = tuple(
        Work(
            name=f"parameters from NVMe, {when.value}", resource=Resource.NVME_READ, amount=amount, when=when, side=True
        )
        for when in (When.FORWARD, When.BACKWARD)
    )
    return (
        *link,
        *reads,
        Work(name="parameters to NVMe", resource=Resource.NVME_WRITE, amount=amount, when=When.STEP, once=True),
    )
