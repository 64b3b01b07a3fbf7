"""A measured row: what was measured, and what is planned for it under any calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from ..calibration import Calibration
from ..memory import Allocator, Band, GpuMemory
from ..time import StepTime
from ..units import GIB
from .parameters import constant


class Quantity(Enum):
    """What a row measures: label, and its noise in configs/calibration.toml."""

    STEP = ("step time", "step")
    ALLOCATED = ("allocated", "allocated")
    HELD = ("reserved over allocated", "held")  # both measured
    RESERVED = ("reserved", "reserved")  # nothing else measured below it
    FIXED = ("device less reserved", "fixed")  # both measured
    DEVICE = ("device memory", "device")

    @property
    def label(self) -> str:
        """What people read."""
        return self.value[0]

    @property
    def noise(self) -> float:
        """Standard deviation of one row around the right figures: of a logarithm, or GiB."""
        return constant("row", self.value[1])

    @property
    def is_memory(self) -> bool:
        """Whether it is bytes."""
        return self is not Quantity.STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of the fullest GPU, and of the slowest rank; None was not measured."""

    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    step_s: float | None = None

    @property
    def memory(self) -> tuple[int | None, int | None, int | None]:
        """Allocated, reserved, device."""
        return self.allocated_bytes, self.reserved_bytes, self.device_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row. What is planned is computed from the shipped figures and a calibration, never from an earlier one."""

    label: str
    source: str  # a file's name, without its folder
    gpu: str  # short name of the catalog
    measured: Measured
    memory: Callable[[Calibration], GpuMemory]
    step: Callable[[Calibration], StepTime | None]
    allocator: Allocator = Allocator.EXPANDABLE
    note: str = ""

    @property
    def quantities(self) -> Mapping[Quantity, float]:
        """What was measured, on the scale that is fitted: logarithms, or GiB of FIXED."""
        allocated, reserved, device = self.measured.memory
        return _quantities(allocated, reserved, device, self.measured.step_s)

    def planned(self, calibration: Calibration, *, memory: bool = True, step: bool = True) -> Mapping[Quantity, float]:
        """The same as planned; one half alone where the other is not asked for."""
        return (self._memory(calibration) if memory else {}) | (self._step(calibration) if step else {})

    def _memory(self, calibration: Calibration) -> dict[Quantity, float]:
        found: dict[Quantity, float] = {}
        measured = self.measured
        if any(measured.memory):
            memory = self.memory(calibration)
            bands = (memory.allocated, memory.reserved, memory.device)
            allocated, reserved, device = (b.point if m else None for b, m in zip(bands, measured.memory, strict=True))
            found |= _quantities(allocated, reserved, device, None)
        return found

    def _step(self, calibration: Calibration) -> dict[Quantity, float]:
        step = self.step(calibration) if self.measured.step_s else None
        return {} if step is None else {Quantity.STEP: math.log(step.step_s)}

    def bands(self, calibration: Calibration) -> tuple[tuple[int, Band], ...]:
        """Each measured memory with the planned range."""
        memory = self.memory(calibration)
        bands = (memory.allocated, memory.reserved, memory.device)
        return tuple((m, b) for m, b in zip(self.measured.memory, bands, strict=True) if m)


def _quantities(
    allocated: float | None, reserved: float | None, device: float | None, step_s: float | None
) -> dict[Quantity, float]:
    """Each figure once: where the one below it is known as well, only what it adds to that."""
    found: dict[Quantity, float] = {}
    if step_s:
        found[Quantity.STEP] = math.log(step_s)
    if allocated:
        found[Quantity.ALLOCATED] = math.log(allocated)
    if reserved:
        kind = Quantity.HELD if allocated else Quantity.RESERVED
        found[kind] = math.log(reserved / allocated) if allocated else math.log(reserved)
    if device:
        kind = Quantity.FIXED if reserved else Quantity.DEVICE
        found[kind] = (device - reserved) / GIB if reserved else math.log(device)
    return found
