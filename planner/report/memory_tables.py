"""Memory line by line and phase by phase: one GPU, one node's host RAM, one node's NVMe."""

from __future__ import annotations

from collections import Counter

from ..units import GIB, gib
from .table import apportioned, table
from .words import Document, phase_name

UNIT_BYTES = GIB / 100  # two digits of a GiB
STORES = {"host": "Host RAM", "nvme": "NVMe"}


def memory_text(memory: Document) -> str:
    """All three devices."""
    return "\n\n".join(
        (gpu_text(memory["gpu"]), store_text("host", memory["host"]), store_text("nvme", memory["nvme"]))
    )


def gpu_text(gpu: Document) -> str:
    """Lines by phase, then from tensors to what the driver shows, against its capacity."""
    peak, capacity = gpu["fullest_phase"], gpu["capacity_bytes"]
    spare = capacity - gpu["upper_bound_bytes"]
    verdict = f"fits, {gib(spare)} to spare" if gpu["fits"] else f"does not fit, {gib(-spare)} short"
    limit = f"of {gib(capacity)} there are: {verdict}"
    steps = (
        (f"tensors at the peak ({phase_name(peak)})", *_figure(gpu, "allocated"), "", "allocated"),
        ("+ cached by the allocator", *_figure(gpu, "reserved"), "§F1", "reserved: what PyTorch holds"),
        ("+ CUDA context, communicators", *_figure(gpu, "device"), "§F2", "on the device: what nvidia-smi shows"),
        ("most that is needed", gib(gpu["upper_bound_bytes"]), "", "§F1", limit),
    )
    figures = table(steps, align="lrlll", indent="  ")
    return f"GPU memory of one GPU, GiB by phase\n{_by_phase(gpu, 1)}\n\n{figures}\n\n{_known_text(gpu)}"


KNOWN = {
    "exact": "exact, as engines hold them",
    "traced": "traced from the model's operations",
    "measured": "measured",
    "assumed": "assumed",
}


def _known_text(gpu: Document) -> str:
    """How the bytes of the peak are known."""
    totals: Counter[str] = Counter()
    for entry in gpu["entries"]:
        if gpu["fullest_phase"] in entry["phases"]:
            totals[entry["certainty"]] += entry["bytes"]
    parts = [f"{gib(size)} {KNOWN[name]}" for name, size in totals.most_common() if size]
    return f"  known: {'; '.join(parts)}"


def _figure(gpu: Document, name: str) -> tuple[str, str]:
    """The expected value, and the range it is expected in."""
    low, upper = (gpu["ranges"][name][f"{end}_bytes"] / GIB for end in ("low", "upper"))
    return gib(gpu[f"{name}_bytes"]), f"{low:,.2f} to {upper:,.2f}"


def store_text(name: str, store: Document) -> str:
    """One node's need of host RAM or NVMe against its capacity, then lines by phase."""
    if not store["upper_bound_bytes"]:
        return f"{STORES[name]}: not used"
    ranks, capacity = store["ranks_per_node"], store["capacity_bytes"]
    if capacity is None:
        verdict = f"how much a node has is unknown, not checked{'' if store['fits'] else ': the plan leans on it'}"
    else:
        verdict = f"of {gib(capacity)} usable: {'fits' if store['fits'] else 'does not fit'}"
    title = f"{STORES[name]} of one node ({ranks} rank{'s' if ranks > 1 else ''}), GiB by phase"
    return f"{title}\n{_by_phase(store, ranks)}\n\n  upper bound {gib(store['upper_bound_bytes'])}, {verdict}"


def _by_phase(memory: Document, ranks: int) -> str:
    """Items down, phases across; the peak's column adds up to its total to the last digit."""
    phases = list(memory["phases"])
    items: dict[tuple[str, str], Counter[str]] = {}
    for entry in memory["entries"]:
        row = items.setdefault((entry["item"], entry["section"]), Counter())
        row.update(dict.fromkeys(entry["phases"], entry["bytes"] * ranks))
    totals = {phase: sum(row[phase] for row in items.values()) for phase in phases}
    shown = _hundredths(items, max(phases, key=lambda phase: totals[phase]))
    ordered = sorted(shown.items(), key=lambda pair: -max(pair[1].values(), default=0))
    return table(
        [
            (item, f"§{section}", *(_cell(row[p]) for p in phases))
            for (item, section), row in ordered
            if any(row.values())
        ],
        header=("", "", *map(phase_name, phases)),
        footer=("total", "", *(_cell(round(totals[phase] / UNIT_BYTES)) for phase in phases)),
        align="ll" + "r" * len(phases),
        indent="  ",
    )


def _hundredths(items: dict[tuple[str, str], Counter[str]], peak: str) -> dict[tuple[str, str], Counter[str]]:
    """Every cell in hundredths of a GiB; a line that stays the same over the phases is rounded alike in all of them."""
    at_peak = apportioned([row[peak] for row in items.values()], UNIT_BYTES)
    return {
        key: Counter({p: whole if size == row[peak] else round(size / UNIT_BYTES) for p, size in row.items()})
        for (key, row), whole in zip(items.items(), at_peak, strict=True)
    }


def _cell(hundredths: int) -> str:
    """Two digits; nothing for nothing."""
    return f"{hundredths / 100:,.2f}" if hundredths else ""
