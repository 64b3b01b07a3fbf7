"""Guards: what in a catalog's rows cannot be right. Each has a reason; nothing passes because it is cheap.

Guards of single rows come first (names, counts, amounts), then those that need a machine's other zones and regions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..catalog_files import LONGEST_TEXT, MOST_GPUS
from ..hardware import Tier
from .listed import Imported, Listed, Machine, Noted, Priced, Reason, Source, among, facts, threshold
from .names import TPU, named_gpu

LARGEST_USD_PER_HOUR = 1e6
LARGEST_SIZE = 1e6  # processors or GiB of one machine
LOCAL_ZONE = re.compile(r"[a-z]{3,4}\d-[a-z]{3}\d+-az\d|[a-z]+-[a-z]+-\d-[a-z]{3}-\d[a-z]")  # use1-atl2-az1
ALL_REGIONS = "all"
SEVERAL = 3  # regions from which on one price in all of them is a list price


def machine_of(row: Listed, noted: list[Noted]) -> Machine | None:
    """The row as a machine with prices that may be right; None with the reason noted."""
    refused = _refused(row)
    gpu = named_gpu(row.cloud, row.accelerator, row.instance) if refused is None else refused
    if isinstance(gpu, Reason):
        _note(noted, gpu, row)
        return None
    gpus = _count(row, noted)
    if gpus is None:
        return None
    on_demand, spot = _prices(row, noted)
    if on_demand is None and spot is None:
        return None
    known = not among(row.cloud, "host_is_the_query")
    if not known and (row.vcpus or row.memory_gib):
        _note(noted, Reason.HOST_UNKNOWN, row)
    return Machine(
        listed=row,
        gpu=gpu,
        gpus=gpus,
        vcpus=int(row.vcpus or 0) or None if known and _is_size(row.vcpus) else None,
        memory_gib=row.memory_gib if known and _is_size(row.memory_gib) else None,
        on_demand=on_demand,
        spot=spot,
    )


def _note(noted: list[Noted], reason: Reason, row: Listed, price: str = "") -> None:
    """Keep the reason; the price is what was left out or repaired."""
    what = "".join(c if c.isprintable() else "?" for c in row.name)[:100]
    noted.append(Noted(reason=reason, where=row.where, what=what + (f": {price}" if price else "")))


def _refused(row: Listed) -> Reason | None:
    """Why a row is no GPU machine that can be named."""
    if not row.accelerator:
        pattern = facts()["gpu_machines"].get(row.cloud)
        return Reason.UNNAMED if pattern and re.match(pattern, row.instance) else Reason.CPU
    if TPU.match(row.accelerator):
        return Reason.TPU
    if not row.instance and among(row.cloud, "flex_in_on_demand"):
        return Reason.NO_HOST
    names = (row.instance, row.region, row.cloud)
    sound = all(name.strip() and name.isprintable() and len(name) <= LONGEST_TEXT for name in names)
    if not sound:
        return Reason.NO_MACHINE
    return Reason.LOCAL_ZONE if LOCAL_ZONE.fullmatch(row.zone) else None


def _count(row: Listed, noted: list[Noted]) -> int | None:
    """GPUs of the machine: repaired where the source is known to be wrong, refused where no machine has so many."""
    known = facts()["gpus_of"].get(row.instance)
    if known is not None:
        if row.count != known:
            _note(noted, Reason.COUNT_REPAIRED, row, f"{row.count} are {known}")
        return int(known)
    if row.count is None or not row.count >= 1 or row.count != int(min(row.count, MOST_GPUS)):
        _note(noted, Reason.SHARE, row, f"{row.count} GPUs")
        return None
    if among(row.cloud, "power_of_two_counts") and not math.log2(row.count).is_integer():
        _note(noted, Reason.COUNT, row, f"{row.count:g} GPUs")
        return None
    return int(row.count)


def _prices(row: Listed, noted: list[Noted]) -> tuple[float | None, float | None]:
    """On-demand and spot, each an amount that may be right, or None."""
    on_demand = _amount(row, row.on_demand, "on-demand", noted)
    spot = _amount(row, row.spot, "spot", noted)
    if row.on_demand is None:
        _note(noted, Reason.NO_PRICE, row, "on-demand")
    if spot is not None and among(row.cloud, "spot_is_a_bid"):
        _note(noted, Reason.BID, row, f"spot {spot:g}")
        spot = None
    if on_demand is None or spot is None:
        return on_demand, spot
    if spot == on_demand:
        _note(noted, Reason.SPOT_EQUALS, row, f"spot {spot:g}")
        return on_demand, None
    if spot > on_demand:
        _note(noted, Reason.IMPOSSIBLE, row, f"on-demand {on_demand:g}, spot {spot:g}")
        return None, None
    return on_demand, spot


def _amount(row: Listed, usd: float | None, what: str, noted: list[Noted]) -> float | None:
    if usd is None or (_is_amount(usd) and usd <= LARGEST_USD_PER_HOUR):
        return usd
    _note(noted, Reason.ZERO if usd == 0 else Reason.NOT_A_PRICE, row, f"{what} {usd:g}")
    return None


def _is_size(value: float | None) -> bool:
    """Whether a machine may have so many processors, or GiB."""
    return value is not None and 0 < value <= LARGEST_SIZE


def _is_amount(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


Catalog = Callable[[Path, list[Noted]], tuple[Source, Iterable[Listed]]]


def imported(program: str, paths: Iterable[Path], catalog: Catalog) -> Imported:
    """What these files offer, and what of them is left out and why.

    Args:
        program: whose catalogs they are.
        paths: the files.
        catalog: reads one of them: what it is, and a row for each machine in each place.
    """
    noted: list[Noted] = []
    machines: list[Machine] = []
    sources = []
    for path in paths:
        source, rows = catalog(path, noted)
        sources.append(source)
        machines += [machine for row in rows if (machine := machine_of(row, noted))]
    return Imported(program=program, sources=tuple(sources), priced=offered(machines, noted), noted=tuple(noted))


def offered(machines: Iterable[Machine], noted: list[Noted]) -> tuple[Priced, ...]:
    """Prices of machines, the lowest of each region; what other zones and regions show to be wrong is left out."""
    groups: dict[tuple[str, str], dict[tuple[str, int], list[Machine]]] = {}
    for m in machines:
        same = groups.setdefault((m.listed.cloud, m.listed.instance), {})
        same.setdefault((m.gpu.name, m.gpus), []).append(m)
    return tuple(
        priced
        for same in groups.values()
        for group in same.values()
        for priced in _offered(_told_apart(group) if len(same) > 1 else group, noted)
    )


def _told_apart(group: Sequence[Machine]) -> list[Machine]:
    """Several machines under one name get their accelerators into it."""
    return [
        replace(m, listed=replace(m.listed, instance=f"{m.listed.instance} ({m.gpus} x {m.gpu.name})")) for m in group
    ]


def _offered(group: Sequence[Machine], noted: list[Noted]) -> list[Priced]:
    """Prices of one machine in all its zones and regions."""
    sold = _by_region(Tier.ON_DEMAND, [(m, m.on_demand) for m in _not_far_below(group, noted)])
    most = {p.region: p.usd_per_hour for p in sold}
    interruptible: list[tuple[Machine, float | None]] = []
    for m in _without_outlier(group, noted):
        limit = most.get(m.listed.region, math.inf)
        if m.spot is not None and m.spot >= limit:
            _note(noted, Reason.IMPOSSIBLE, m.listed, f"spot {m.spot:g}, on-demand of its region {limit:g}")
        else:
            interruptible.append((m, m.spot))
    return _one_for_all(sold) + _one_for_all(_by_region(Tier.SPOT, interruptible))


def _not_far_below(group: Sequence[Machine], noted: list[Noted]) -> list[Machine]:
    """On-demand prices that may be the same machine's: neither another product's nor a slip of the pen."""
    cloud, prices = group[0].listed.cloud, [m.on_demand for m in group if m.on_demand is not None]
    if not prices or among(cloud, "marketplaces"):
        return list(group)
    queued = among(cloud, "flex_in_on_demand")
    least = threshold("flex_share" if queued else "region_share") * max(prices)
    for m in group:
        if m.on_demand is not None and m.on_demand < least:
            reason = Reason.FLEX if queued else Reason.FAR_BELOW
            _note(noted, reason, m.listed, f"on-demand {m.on_demand:g}, elsewhere {max(prices):g}")
    return [m for m in group if m.on_demand is not None and m.on_demand >= least]


def _without_outlier(group: Sequence[Machine], noted: list[Noted]) -> list[Machine]:
    """Spot prices less that of a single zone which is far too low."""
    if not among(group[0].listed.cloud, "zoned_spot"):
        return list(group)
    by_price = sorted((m for m in group if m.spot is not None), key=lambda m: m.spot or 0.0)
    if not by_price or not _stands_out(by_price):
        return by_price
    _note(noted, Reason.OUTLIER, by_price[0].listed, f"spot {by_price[0].spot:g}")
    return by_price[1:]


def _stands_out(by_price: Sequence[Machine]) -> bool:
    """Whether the lowest alone is below a share of on-demand; where that is unknown, below a share of the next."""
    on_demand = max((m.on_demand or 0.0 for m in by_price), default=0.0)
    least = threshold("outlier_share") * on_demand
    if on_demand:
        return sum(1 for m in by_price if (m.spot or 0.0) < least) == 1
    following = by_price[1].spot if len(by_price) > 1 else None
    return following is not None and (by_price[0].spot or 0.0) < threshold("next_zone_share") * following


def _by_region(tier: Tier, prices: Iterable[tuple[Machine, float | None]]) -> list[Priced]:
    """The lowest price of each region."""
    least: dict[str, Priced] = {}
    for machine, price in prices:
        region = machine.listed.region
        if price is not None and (region not in least or price < least[region].usd_per_hour):
            least[region] = Priced(machine=machine, tier=tier, usd_per_hour=price, region=region)
    return list(least.values())


def _one_for_all(found: list[Priced]) -> list[Priced]:
    """One row where a list price is the same in all of several regions."""
    if len(found) >= SEVERAL and len({p.usd_per_hour for p in found}) == 1:
        return [replace(found[0], region=ALL_REGIONS)]
    return found
