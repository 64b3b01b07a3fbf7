"""Networks that collectives run on, inside and between nodes: configs/fabrics.toml. `network` has the formula."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

from ..efficiency import architecture_key
from ..errors import InputError, did_you_mean
from ..hardware import Gpu, Node

UNKNOWN = "unknown"  # the fabric between nodes when nobody named it
BRIDGED_RANKS = 2  # an NVLink bridge joins a pair of PCIe boards


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricFigure:
    """One constant of a fabric and where it comes from."""

    name: str  # "nvlink4.share"
    by_ranks: tuple[tuple[int, float], ...]  # ascending; one pair where the number of ranks does not matter
    kind: str  # "measured", "derived", "fitted" or "assumed"
    source: str
    date: str
    unit: str = "share"

    @property
    def value(self) -> float:
        """The constant where the number of ranks does not matter."""
        return self.by_ranks[0][1]

    def at(self, ranks: int) -> float:
        """The constant for so many ranks: the lower of the two measured counts around them, else of the nearest.

        >>> gain = FabricFigure(name="g", by_ranks=((5, 1.0), (6, 1.15), (8, 1.23)), kind="", source="", date="")
        >>> gain.at(2), gain.at(7), gain.at(8), gain.at(72)
        (1.0, 1.15, 1.23, 1.23)
        """
        fewer = [value for count, value in self.by_ranks if count <= ranks]
        more = [value for count, value in self.by_ranks if count >= ranks]
        return min(fewer[-1:] + more[:1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """One kind of link; the comments of configs/fabrics.toml say what each constant is."""

    name: str
    share: FabricFigure
    hop_s: FabricFigure
    ramp_bytes: FabricFigure
    send_share: FabricFigure | None = None  # None: as `share`
    gain: FabricFigure | None = None  # None: no switch sums
    domain_gpus: int = 0  # 0: a domain is a node
    mesh_peers: int = 0  # 0: one link carries everything
    architecture: str = ""
    host_link_above_bytes_per_s: float = 0.0


Row = Mapping[str, Any]


@lru_cache(maxsize=1)
def _file() -> Row:
    import tomllib  # here: the command line's --help reads no constants and should not wait for these
    from importlib.resources import files

    return tomllib.loads(files("trainplan.configs").joinpath("fabrics.toml").read_text(encoding="utf-8"))


def _figure(name: str, row: Row) -> FabricFigure:
    rest = {key: text for key, text in row.items() if key not in ("value", "by_ranks")}
    measured = row.get("by_ranks") or {"1": row["value"]}
    return FabricFigure(name=name, by_ranks=tuple(sorted((int(n), float(v)) for n, v in measured.items())), **rest)


def _fabric(name: str, row: Row) -> Fabric:
    given: dict[str, Any] = {k: _figure(f"{name}.{k}", v) if isinstance(v, dict) else v for k, v in row.items()}
    return Fabric(name=name, **given)


@lru_cache(maxsize=2)
def fabrics(where: str) -> Mapping[str, Fabric]:
    """All fabrics of one table, ``inside`` a node or ``between`` nodes.

    >>> fabrics("inside")["nvlink4"].share.value
    0.81
    """
    return {name: _fabric(name, row) for name, row in _file()[where].items()}


def fabric_names() -> tuple[str, ...]:
    """Networks between nodes that a user may name.

    >>> "infiniband" in fabric_names(), UNKNOWN in fabric_names()
    (True, False)
    """
    return tuple(name for name in fabrics("between") if name != UNKNOWN)


@lru_cache(maxsize=8)
def every(name: str) -> FabricFigure:
    """A constant that all fabrics share."""
    return _figure(name, _file()["every"][name])


def _nvlink(gpu: Gpu) -> str:
    key = architecture_key(gpu.architecture)
    name = next((f.name for f in fabrics("inside").values() if f.architecture == key), "other")
    return f"{name}-nvl72" if "grace" in gpu.architecture.lower() else name


def _pcie(gpu: Gpu) -> str:
    return "pcie5" if gpu.host_link_bytes_per_s > fabrics("inside")["pcie5"].host_link_above_bytes_per_s else "pcie4"


def inside_fabric(gpu: Gpu, ranks: int = 1) -> Fabric:
    """What joins the GPUs of a node: their link, or PCIe where more than a bridged pair of boards takes part.

    >>> from trainplan.planner.catalog import find_gpu
    >>> [inside_fabric(find_gpu(name), 8).name for name in ("v100-32", "a100-80", "gb300", "5090", "4090", "mi300x")]
    ['nvlink2', 'nvlink3', 'nvlink5-nvl72', 'pcie5', 'pcie4', 'xgmi']
    """
    link = gpu.link.lower()
    known = fabrics("inside")
    if link.startswith(("pcie", "none")):
        return known[_pcie(gpu)]
    if link.startswith("nvlink") and "c2c" not in link:  # NVLink-C2C joins a GPU and its CPU
        if gpu.nvswitch or "sxm" in gpu.full_name.lower():
            return known[_nvlink(gpu)]
        return known["nvlink-bridge" if ranks <= BRIDGED_RANKS else _pcie(gpu)]
    return known["xgmi" if link.startswith("xgmi") else "other"]


def between_fabric(node: Node) -> Fabric:
    """What joins nodes: the fabric the node states, else the cautious one of an unknown network.

    Raises:
        InputError: the node states a fabric that the file does not have.
    """
    name, known = node.fabric or UNKNOWN, fabrics("between")
    if name not in known:
        raise InputError(
            f"fabric: unknown fabric between nodes, got {name}; allowed are {', '.join(known)}"
            f"{did_you_mean(name, known)}; name one of them or leave it out"
        )
    return known[name]


def offered_fabric(cloud: str, instance: str) -> str | None:
    """The fabric between rented nodes of one kind; None: not known.

    >>> offered_fabric("aws", "p5.48xlarge"), offered_fabric("gcp", "a3-megagpu-8g"), offered_fabric("vast", "8x H100")
    ('efa-v2', 'tcpxo', None)
    """
    for row in _file()["offers"]:
        if row["cloud"] == cloud and fnmatchcase(instance, row["instance"]):
            return str(row["fabric"])
    return None


def named_fabric(text: str) -> str | None:
    """The fabric that a free description names; None: it names none.

    >>> named_fabric("1600 Gbps RoCE"), named_fabric("8x200Gb/s HDR IB"), named_fabric("NVLink")
    ('roce', 'infiniband', None)
    """
    for word, name in _file()["words"].items():
        if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE):
            return str(name)
    return None
