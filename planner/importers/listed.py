"""What an importer reads, what it keeps, and what it leaves out or repairs, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from ..efficiency import Figure
from ..hardware import Gpu, Tier


class Reason(Enum):
    """Why a row, or one of its prices, is left out, repaired or doubted."""

    UNREADABLE = "not a row of this table: cells are missing or no CSV"
    NO_MACHINE = "names neither a machine nor a region, or with letters that cannot be printed"
    CPU = "a machine without accelerators"
    UNNAMED = "a GPU machine whose accelerator is not named"
    UNKNOWN_GPU = "an accelerator that is not in the catalog of accelerators"
    AMBIGUOUS_GPU = "the name stands for several cards, and the machine's does not tell which"
    SHARE = "a share of a GPU, or no whole number of them"
    COUNT_REPAIRED = "repaired: the number of GPUs is wrong in the source, and known"
    COUNT = "a number of GPUs that no such machine has"
    NO_PRICE = "no price: not sold this way (by reservation only), or sold out"
    NOT_A_PRICE = "not an amount of money above 0"
    ZERO = "0.00 is an empty column, not a free machine"
    SPOT_EQUALS = "spot equals on-demand: no discount, no capacity"
    IMPOSSIBLE = "on-demand below spot is impossible: one of both is another product's"
    FLEX = "on-demand far below the dearest region: the price of a queued product (flex start) filed as on-demand"
    FAR_BELOW = "on-demand far below the same machine's dearest region: cannot be told from an error"
    OUTLIER = "spot of a single zone far below all others: cannot be told from an error"
    LOCAL_ZONE = "a local zone, which is not the region's capacity"
    BID = "a bid, not a quoted price"
    NO_HOST = "accelerators alone: the machine is billed separately, and its row is missing or unknown"
    HOST_UNKNOWN = "repaired: processors and memory are the query's minimum, not the machine's, and left unknown"
    TPU = "a TPU slice"


REPAIRS = (Reason.COUNT_REPAIRED, Reason.HOST_UNKNOWN)
NO_GPUS = (Reason.CPU, Reason.TPU)  # no loss to a planner of GPU jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """One thing left out or repaired."""

    reason: Reason
    where: str  # "v8/aws/vms.csv line 12"
    what: str  # "p5en.48xlarge in eu-south-2: spot 6.836"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One row of a catalog, as it stands there; None is an empty cell."""

    where: str
    cloud: str
    instance: str
    accelerator: str
    count: float | None
    vcpus: float | None
    memory_gib: float | None
    on_demand: float | None  # USD per hour of the whole machine
    spot: float | None
    region: str
    zone: str = ""

    @property
    def name(self) -> str:
        """The row in a few words."""
        return f"{self.instance or self.accelerator} in {self.zone or self.region}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A row that the guards of single rows let pass."""

    listed: Listed
    gpu: Gpu
    gpus: int
    vcpus: int | None
    memory_gib: float | None
    on_demand: float | None
    spot: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """One price that is offered."""

    machine: Machine
    tier: Tier
    usd_per_hour: float
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file that was read."""

    cloud: str
    citation: str
    date: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Everything an importer found."""

    program: str
    sources: tuple[Source, ...]
    priced: tuple[Priced, ...]
    noted: tuple[Noted, ...]

    @property
    def rows(self) -> int:
        """Rows read in all."""
        return sum(source.rows for source in self.sources)


@cache
def facts() -> dict[str, Any]:
    """configs/importers.toml."""
    import tomllib
    from importlib.resources import files

    return tomllib.loads(files("trainplan.configs").joinpath("importers.toml").read_text(encoding="utf-8"))


@cache
def threshold(name: str) -> float:
    """A threshold of the guards; its unit and source stand beside it.

    >>> threshold("flex_share")
    0.6
    """
    return Figure(**facts()["constants"][name]).value


def among(cloud: str, kind: str) -> bool:
    """Whether a cloud's catalog is of a kind.

    >>> among("gcp", "flex_in_on_demand"), among("aws", "flex_in_on_demand")
    (True, False)
    """
    return cloud in facts()["clouds"][kind]
