"""What measured rows say of one platform: factors on rates, and figures of memory in place of the shipped ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, slots=True)
class Range:
    """A figure with the range it is expected in; the upper end decides what fits."""

    low: float
    point: float
    upper: float


AS_COUNTED = Range(0.0, 0.0, 0.0)  # no live excess: lines stay as they are counted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # compared by identity, as the Gpu that carries it
class Calibration:
    """One platform's figures; those of the default change no number.

    Rates are factors on the shipped ones (2 is twice as fast) and multiply bandwidths, never latencies.
    """

    matmul: float = 1.0
    attention: float = 1.0
    memory: float = 1.0  # kernels bound by GPU memory
    launches: float = 1.0  # kernels launched per second
    inside: float = 1.0  # links between the GPUs of a node
    between: float = 1.0  # network between nodes
    host_link: float = 1.0
    host_memory: float = 1.0  # of the CPU optimizer
    nvme: float = 1.0
    live: Range = AS_COUNTED  # share by which lines that are not exact are larger than counted
    overheads: Mapping[str, Range] = field(default_factory=dict)  # by their names in configs/measured/overheads.toml


AS_SHIPPED = Calibration()
RATES = tuple(f.name for f in fields(Calibration) if f.type == "float")  # names of the factors
