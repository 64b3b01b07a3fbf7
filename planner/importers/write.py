"""Imported prices as a price list in trainplan's own TOML, which `--prices` reads."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache

from ..catalog import offers
from ..catalog_files import NETWORK
from ..hardware import Node, Tier
from ..units import GBIT_BYTES, TERA
from .listed import Imported, Machine, Priced, Source

AS_BUILT_IN = "Network and NVMe are those of the built-in offer of this machine."
DIGITS = 6  # of a dollar; sums of two rows have more
PREFIX = {Tier.ON_DEMAND: "on_demand", Tier.SPOT: "spot"}


def price_list(found: Imported) -> str:
    """The TOML text: sources with their dates, one row for each machine and region."""
    parts = [_head(found), *(_source(source) for source in found.sources)]
    rows: dict[tuple[str, ...], list[Priced]] = {}
    for priced in found.priced:
        listed = priced.machine.listed
        rows.setdefault((listed.cloud, listed.instance, priced.region), []).append(priced)
    return "\n\n".join([*parts, *(_row(prices) for _, prices in sorted(rows.items()))]) + "\n"


def _head(found: Imported) -> str:
    """What was left out, for whoever reads the file."""
    counts = Counter(note.reason for note in found.noted)
    lines = [f"# {number:,} x {reason.value}" for reason, number in counts.most_common()]
    title = (
        f"# Written by trainplan offers import from {found.program}'s catalogs, {found.rows:,} rows. Left out there:"
    )
    return "\n".join([title, *lines, 'currency = "USD"'])


def _source(source: Source) -> str:
    return f"[sources.{_text(source.cloud)}]\ncitation = {_text(source.citation)}\ndate = {_text(source.date)}"


def _row(prices: list[Priced]) -> str:
    """One machine in one region, with its prices."""
    machine = prices[0].machine
    lines = ["[[offers]]", f"cloud = {_text(machine.listed.cloud)}", f"instance = {_text(machine.listed.instance)}"]
    lines += [f"gpu = {_text(machine.gpu.name)}", f"gpus = {machine.gpus}"]
    if machine.vcpus is not None:
        lines.append(f"vcpus = {machine.vcpus}")
    if machine.memory_gib is not None:
        lines.append(f"host_memory_gib = {machine.memory_gib!r}")
    lines += _known(machine)
    for priced in sorted(prices, key=lambda p: p.tier.value):
        prefix = PREFIX[priced.tier]
        lines += [
            f"{prefix}_usd_per_hour = {round(priced.usd_per_hour, DIGITS)!r}",
            f"{prefix}_region = {_text(priced.region)}",
        ]
    return "\n".join([*lines, f"source = {_text(machine.listed.cloud)}"])


def _known(machine: Machine) -> list[str]:
    """Network and NVMe, which no catalog on disk has: facts of a machine, not of a price, as configs/offers states."""
    node = _nodes().get((f"{machine.listed.cloud}/{machine.listed.instance}".lower(), machine.gpu.name, machine.gpus))
    if node is None:
        return []
    figures = (("nvme_tb", node.nvme_bytes, TERA), (NETWORK, node.internode_bytes_per_s, GBIT_BYTES))
    found = [f"{key} = {value / unit!r}" for key, value, unit in figures if value is not None]
    return [*found, f"notes = {_text(AS_BUILT_IN)}"] if found else []


@cache
def _nodes() -> dict[tuple[str, str, int], Node]:
    """Machines of the built-in offers, by name, accelerator and count."""
    return {(offer.name.lower(), offer.node.gpu.name, offer.node.gpus): offer.node for offer in offers()}


def _text(value: str) -> str:
    """A TOML basic string: JSON's escapes are TOML's too, and the guards let printable texts pass only."""
    return json.dumps(value, ensure_ascii=False)
