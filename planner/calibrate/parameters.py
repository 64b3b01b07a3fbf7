"""What depends on the platform: each parameter with its shipped value, how far it may be off, and its unit.

Rates are fitted as logarithms of factors on the shipped ones; memory in its own units. Deviations come from shipped
ranges: of a range taken as holding 80 %, (upper - low) / 2 z with z = 1.2816; of [spread] s, log(1 + s). Kernels of one
GPU share clocks and libraries: what [spread] calls unknown moves all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..calibration import AS_COUNTED, RATES, Calibration, Range
from ..efficiency import Figure, figures_of
from ..efficiency import value as efficiency
from ..overheads import overhead
from ..time.spread import Z

Matrix = npt.NDArray[np.float64]


@lru_cache(maxsize=1)
def _constants() -> Mapping[str, Mapping[str, Figure]]:
    return figures_of("calibration.toml")


def constant(table: str, name: str) -> float:
    """A constant of configs/calibration.toml.

    >>> constant("reach", "deviations")
    3.0
    """
    return _constants()[table][name].value


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One figure of a platform; ``start``, ``deviation``, ``least`` and ``most`` on the scale that is fitted."""

    name: str
    label: str
    unit: str
    start: float
    deviation: float
    logarithmic: bool = False
    floor: float = -math.inf

    @property
    def least(self) -> float:
        """The lowest value that is believed."""
        return max(self.floor, self.start - constant("reach", "deviations") * self.deviation)

    @property
    def most(self) -> float:
        """The highest value that is believed."""
        return self.start + constant("reach", "deviations") * self.deviation

    def shown(self, fitted: float) -> float:
        """The value on the scale that people read."""
        return math.exp(fitted) if self.logarithmic else fitted

    @property
    def allowed(self) -> tuple[float, float]:
        """What a profile may state, on the scale that people read."""
        return self.shown(self.least), self.shown(self.most)


KERNELS = ("matmul", "attention", "memory")  # of one GPU: they share clocks and libraries
SPREADS = {
    "matmul": ("matrix multiplications", "matmul"),
    "attention": ("attention kernels", "attention"),
    "memory": ("memory-bound kernels", "memory"),
    "launches": ("kernel launches", "kernel-launches"),
    "inside": ("links between GPUs of a node", "collectives"),
    "between": ("network between nodes", "collectives"),
    "host_link": ("link to the host", "host-link"),
    "host_memory": ("CPU optimizer", "host-memory"),
    "nvme": ("NVMe drives", "nvme"),
}
FACTOR = "x shipped rate"
OVERHEADS = {
    "context": ("context and workspaces", "GiB"),
    "collectives": ("each communicator", "GiB"),
    "fragmentation": ("reserved above allocated", "share"),
    "fragmentation_native": ("reserved above allocated, fixed segments", "share"),
    "fragmentation_varying": ("reserved above allocated, varying lengths", "share"),
}
LIVE = "live"


def deviation_of(spread: str) -> float:
    """Deviation of a rate's logarithm: log(1 + s) of its row of [spread]."""
    return math.log1p(efficiency("spread", spread))


def _rate(name: str) -> Parameter:
    label, spread = SPREADS[name]
    own = deviation_of(spread)
    both = math.hypot(own, deviation_of("unknown")) if name in KERNELS else own
    return Parameter(name=name, label=label, unit=FACTOR, start=0.0, deviation=both, logarithmic=True)


def _overhead(name: str) -> Parameter:
    label, unit = OVERHEADS[name]
    shipped = overhead(name)
    deviation = (shipped.upper - shipped.low) / (2 * Z)
    return Parameter(name=name, label=label, unit=unit, start=shipped.point, deviation=deviation, floor=0.0)


@lru_cache(maxsize=1)
def parameters() -> tuple[Parameter, ...]:
    """All that may move.

    >>> [p.name for p in parameters()][:4]
    ['live', 'fragmentation', 'fragmentation_native', 'fragmentation_varying']
    """
    live = Parameter(
        name=LIVE,
        label="live tensors above those counted",
        unit="share of lines not exact",
        start=0.0,
        deviation=constant("width", LIVE),
        floor=-1.0,
    )
    memory = ("fragmentation", "fragmentation_native", "fragmentation_varying", "context", "collectives")
    return (live, *(_overhead(name) for name in memory), *(_rate(name) for name in RATES))


def covariance(chosen: Sequence[Parameter]) -> Matrix:
    """Of the shipped values: independent, but for the kernels of one GPU.

    >>> kernels = [p for p in parameters() if p.name in ("matmul", "attention")]
    >>> float(round(covariance(kernels)[0, 1], 4))  # log(1.08) squared
    0.0059
    """
    found = np.diag([p.deviation**2 for p in chosen]).astype(np.float64)
    shared = deviation_of("unknown") ** 2
    for row, one in enumerate(chosen):
        for column, other in enumerate(chosen):
            if row != column and one.name in KERNELS and other.name in KERNELS:
                found[row, column] = shared
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One parameter as the rows say, on the scale that people read."""

    name: str
    value: Range
    rows: int  # that measure it
    doubt_left: float  # its deviation over the shipped one

    @property
    def parameter(self) -> Parameter:
        """What it is."""
        return next(p for p in parameters() if p.name == self.name)

    @property
    def shipped(self) -> float:
        """Its value without rows."""
        return self.parameter.shown(self.parameter.start)


def calibration_of(figures: Mapping[str, Range]) -> Calibration:
    """Figures by name as the value that the models carry.

    >>> calibration_of({"matmul": Range(0.8, 0.9, 1.0)}).matmul
    0.9
    """
    rates = {name: figures[name].point for name in RATES if name in figures}
    overheads = {name: figures[name] for name in OVERHEADS if name in figures}
    return Calibration(**rates, live=figures.get(LIVE, AS_COUNTED), overheads=overheads)


def at(chosen: Iterable[Parameter], values: Iterable[float]) -> Calibration:
    """The calibration at fitted values, without ranges."""
    shown = ((p, p.shown(float(x))) for p, x in zip(chosen, values, strict=True))
    return calibration_of({p.name: Range(x, x, x) for p, x in shown})
