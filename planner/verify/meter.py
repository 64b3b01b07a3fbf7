"""What a GPU's allocator and driver say, by phase: three memories, never mixed; nothing without a GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from ..units import MIB
from .machine import nvidia_smi


@dataclass(slots=True, kw_only=True)
class Meter:
    """The most that was allocated, reserved and used on the device in each phase; nothing without a GPU."""

    gpu: bool
    phase: str = ""
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    moments: dict[str, int | None] = field(default_factory=dict)

    def begin(self) -> None:
        """Make this process's context; note what others use of the device before it."""
        if not self.gpu:
            return
        used = used_by_card()  # before the next line makes a context
        torch.empty(1, device="cuda")
        card = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        self.moments["before_bytes"] = used.get(f"GPU-{card}")
        self.moment("context")

    def enter(self, phase: str) -> None:
        """End the phase before, and begin one."""
        self.close()
        self.phase = phase
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()

    def close(self) -> None:
        """End the phase."""
        if not self.phase:
            return
        seen = self.phases.setdefault(self.phase, {})
        for kind, size in self._peaks().items():
            seen[kind] = max(seen.get(kind, 0), size)

    def _peaks(self) -> dict[str, int]:
        if not self.gpu:
            return {}
        return {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "device": device_used_bytes(),
        }

    def moment(self, name: str) -> None:
        """Note what the device and this process use beyond what the allocator reserved."""
        if self.gpu:
            self.moments[f"{name}_beside_reserved_bytes"] = device_used_bytes() - torch.cuda.memory_reserved()
            self.moments[f"{name}_process_bytes"] = process_bytes()


def device_used_bytes() -> int:
    """Used on the device by all processes: torch.cuda.mem_get_info."""
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def used_by_card() -> dict[str, int]:
    """Bytes in use on each card, by its uuid, as the driver says without a context of ours."""
    rows = nvidia_smi("--query-gpu=uuid,memory.used")
    return {cells[0]: int(cells[1]) * MIB for cells in rows if len(cells) == 2 and cells[1].isdigit()}


def process_bytes() -> int | None:
    """What the driver says this process uses; None where it does not list it (containers hide process numbers)."""
    for cells in nvidia_smi("--query-compute-apps=pid,used_memory"):
        if len(cells) == 2 and cells[0] == str(os.getpid()) and cells[1].isdigit():
            return int(cells[1]) * MIB
    return None


def out_of_memory(error: Exception) -> bool:
    """Whether it is torch's, the driver's or a library's way to say that GPU memory ran out."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "alloc_failed" in text
