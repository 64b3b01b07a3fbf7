"""GCP in SkyPilot's catalog: a machine and its accelerators are two rows, billed together in one zone.

Source: SkyPilot 0.14.1, sky/catalog/gcp_catalog.py; which machine carries which accelerators: configs/importers.toml.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .listed import Listed, Noted, Reason, facts
from .names import TPU


def with_hosts(rows: Sequence[Listed], noted: list[Noted]) -> list[Listed]:
    """Accelerators and the machine that carries them as one row; those whose machine has no row are left out.

    Args:
        rows: of one catalog: machines without accelerators, accelerators without a machine, and whole ones.
        noted: reasons are added here.
    """
    hosts = {(row.instance, row.zone): row for row in rows if row.instance and not row.accelerator}
    carriers = {name for by_count in _hosts().values() for names in by_count.values() for name in names}
    whole = [row for row in rows if row.instance and (row.accelerator or row.instance not in carriers)]
    for row in rows:
        if not row.instance:
            whole += _joined(row, hosts, noted)
    return whole


def _joined(row: Listed, hosts: dict[tuple[str, str], Listed], noted: list[Noted]) -> list[Listed]:
    """The accelerators with each machine that may carry them in their zone."""
    if not row.accelerator or TPU.match(row.accelerator):
        return [row]  # the guards of single rows say why not
    if row.on_demand is not None and row.spot is not None and row.on_demand < row.spot:
        what = f"{row.name}: on-demand {row.on_demand:g}, spot {row.spot:g}"
        noted.append(Noted(reason=Reason.IMPOSSIBLE, where=row.where, what=what))
        return []
    count = int(row.count) if row.count is not None and 0 < row.count <= 1024 else 0
    names = _hosts().get(row.accelerator, {}).get(count, ())
    found = [hosts[name, row.zone] for name in names if (name, row.zone) in hosts]
    if not found:
        return [row]
    return [
        replace(
            row,
            instance=host.instance,
            vcpus=host.vcpus,
            memory_gib=host.memory_gib,
            on_demand=_sum(row.on_demand, host.on_demand),
            spot=_sum(row.spot, host.spot),
        )
        for host in found
    ]


def _sum(accelerators: float | None, host: float | None) -> float | None:
    """Both together; unknown where one of them is: half a price is no price."""
    return None if not accelerators or not host else accelerators + host


def _hosts() -> dict[str, dict[int, tuple[str, ...]]]:
    """Machines by accelerator and count."""
    return {
        row["accelerator"]: {int(count): tuple(names) for count, names in row["hosts"].items()}
        for row in facts()["gcp_hosts"]
    }
