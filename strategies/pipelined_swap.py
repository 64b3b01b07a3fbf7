"""Optimizer states on NVMe, read and written while the CPU updates other sub-groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..planner.ledger import Device, Entry, Item, Ledger
from ..planner.states import CPU_OPTIMIZER, STATES_READ, STATES_WRITTEN, pinned, sub_groups
from ..planner.transform import Setting
from ..planner.work import Work

IN_FLIGHT = 3  # sub-groups: one read, one updated, one written
STAGES = (STATES_READ, CPU_OPTIMIZER, STATES_WRITTEN)


@dataclass(frozen=True, slots=True)
class PipelinedSwap:
    """DeepSpeed's pipeline_read and pipeline_write: the slowest of reading, updating and writing sets the pace.

    It takes three times the pinned buffers. The first sub-group's read and the last one's write hide behind nothing:

        seconds = (G - 1) / G x max(read, update, write) + (read + update + write) / G        G sub-groups

    Source:
        DeepSpeed 0.19.8 runtime/swap_tensor/pipelined_optimizer_swapper.py; with fewer than 12 buffers a real engine
        ran out of them.
    """

    rank = 62
    name = "pipelined-swap"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"swap": "pipelined"}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting; the compatibility table asks for NVMe."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Overlap the swaps."""
        written = ledger.deepspeed["zero_optimization"]
        groups = len(sub_groups(ledger.trainable, setting.world_size, int(written["sub_group_size"])))
        buffers = IN_FLIGHT * int(written["offload_optimizer"]["buffer_count"])
        entries = tuple(_larger(entry) for entry in ledger.entries)
        staged = [work for work in ledger.work if work.name in STAGES]
        keys = {"pipeline_read": True, "pipeline_write": True, "buffer_count": buffers}
        return (
            replace(ledger.not_doing(*STAGES), entries=entries)
            .doing(*(part for work in staged for part in _split(work, groups)))
            .keys(zero_optimization={"offload_optimizer": keys})
        )


def _larger(entry: Entry) -> Entry:
    """The optimizer's swap buffers; those of parameters stay as they are."""
    if entry.item is not Item.SWAP_BUFFERS or entry.device is not Device.HOST or "sub-group" not in entry.why:
        return entry
    size = IN_FLIGHT * entry.bytes
    return replace(entry, bytes=size, upper=pinned(size), why=f"{IN_FLIGHT} sub-groups in flight, each {entry.why}")


def _split(work: Work, groups: int) -> tuple[Work, ...]:
    """What hides behind the slowest stage, and one sub-group's share that does not."""
    alone = work.amount / groups
    return replace(work, amount=work.amount - alone, pipelined=True), replace(work, amount=alone)
