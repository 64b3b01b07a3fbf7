"""One family of stacks in one setting as rows and bounds of the integer program: lines in k and g through exact folds.

k is the number of checkpointed layers, g the number of optimizer sub-groups on the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .bounds import chord_excess, folded
from .candidate import step_parts
from .family import Family
from .hardware import Gpu, Node
from .ledger import ALWAYS, Device, Ledger, Phase
from .memory import fixed_device_bytes, host_memory, needed_share, nvme_memory
from .program import Box, Line, Part, Row
from .time import PartTime
from .transform import Setting
from .units import GIB


def box_of(family: Family, layers: int) -> Box:
    """Ranges of k (1..L) and g (1..groups); 0 where the family has no such choice."""
    low_k, high_k = (1, layers) if family.checkpointing is not None else (0, 0)
    low_g, high_g = (1, family.groups) if family.groups else (0, 0)
    return Box(low_k, high_k, low_g, high_g)


def corners_of(family: Family, setting: Setting, box: Box) -> tuple[Ledger, ...]:
    """Ledgers at (low k, low g), (high k, low g), (low k, high g): enough for lines in k and g."""
    points = ((box.low_layers, box.low_groups), (box.high_layers, box.low_groups), (box.low_layers, box.high_groups))
    return tuple(folded(family, setting, k, g) for k, g in points)


def _line(values: Sequence[float], box: Box) -> Line:
    """The line through three corners: (low, low), (high k, low g), (low k, high g)."""
    base, more_layers, more_groups = values
    per_layer = (more_layers - base) / (box.high_layers - box.low_layers) if box.high_layers > box.low_layers else 0.0
    per_group = (more_groups - base) / (box.high_groups - box.low_groups) if box.high_groups > box.low_groups else 0.0
    return Line(base - per_layer * box.low_layers - per_group * box.low_groups, per_layer, per_group)


def gpu_rows(corners: Sequence[Ledger], box: Box, setting: Setting, gpu: Gpu) -> tuple[Row, ...]:
    """One row per phase: the upper bound, or where layers differ a line below it."""
    factor = (1 + needed_share()) / GIB
    fixed = fixed_device_bytes(setting.world_size, upper=True, calibration=gpu.calibration) / GIB
    phases = [corner.by_phase(Device.GPU, upper=True) for corner in corners]
    excess = _excess(corners[0], box, setting)
    return tuple(
        Row(
            f"gpu_{phase.value}",
            _line([fixed + factor * (p[phase] - excess[phase]) for p in phases], box),
            gpu.memory_bytes / GIB,
        )
        for phase in ALWAYS
    )


def _excess(corner: Ledger, box: Box, setting: Setting) -> dict[Phase, int]:
    """What must be taken off each phase so that its line is never above the ledger."""
    if box.high_layers == box.low_layers:
        return dict.fromkeys(ALWAYS, 0)
    excess = chord_excess(setting.model, corner.computation, setting.workload.seq_len, setting.micro_batch)
    grown = max(0.0, setting.live.upper)
    return {phase: math.ceil(size * (1 + grown)) for phase, size in excess.items()} if grown else excess


def store_rows(corners: Sequence[Ledger], box: Box, setting: Setting, node: Node) -> tuple[Row, ...] | None:
    """Host RAM and NVMe; None where the stack leans on a capacity nobody knows.

    With a share to choose, the row holds point estimates: pinned memory is rounded up in steps, which the exact ledger
    judges. Without one it holds the upper bound itself.
    """
    rows = []
    for name, judge in (("host_memory", host_memory), ("nvme", nvme_memory)):
        reports = [judge(corner, node, setting.ranks_per_node) for corner in corners]
        if reports[0].capacity_bytes is None:
            if any(report.leans for report in reports):
                return None
            continue
        shared = box.high_groups > box.low_groups
        needs = [(r.needed_bytes if shared else r.upper_bound_bytes) / GIB for r in reports]
        rows.append(Row(name, _line(needs, box), reports[0].capacity_bytes / GIB))
    return tuple(rows)


def parts_of(corners: Sequence[Ledger], box: Box, setting: Setting, node: Node) -> tuple[Part, ...]:
    """Parts of the step: each at least its compute, and its compute plus the traffic that cannot hide.

    Evaluation passes forward as every micro-step but the last does, the first part: it adds to how often that happens.
    """
    priced: dict[Ledger, tuple[PartTime, ...]] = {}
    for corner in corners:
        if corner not in priced:
            priced[corner] = step_parts(corner, corner.computation, setting, node)
    times = [priced[corner] for corner in corners]
    return tuple(
        Part(
            first.times + (0 if index else setting.evaluation_micro_steps),
            tuple(_line([time[index].bounds_s[bound] for time in times], box) for bound in range(len(first.bounds_s))),
        )
        for index, first in enumerate(times[0])
    )


def admitted_groups(family: Family, setting: Setting, box: Box, node: Node) -> Box:
    """The box less the shares whose upper bound the host cannot hold.

    Pinned memory is rounded up in steps, so the bound is no line in g; but it grows with g: a bisection finds
    its end.
    """
    if box.high_groups == box.low_groups:
        return box

    def fits(groups: int) -> bool:
        return host_memory(folded(family, setting, box.low_layers, groups), node, setting.ranks_per_node).fits

    low, high = box.low_groups, box.high_groups
    if fits(high):
        return box
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(middle + 1) else (low, middle)
    return replace(box, high_groups=low)
