"""From offers and families of stacks to the columns of the integer program.

Candidates are grouped by what shares rates (method, machine, nodes), looked at in the order of their lower bounds, and
dropped as soon as a confirmed point beats their bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from .billing import bill_usd
from .bounds import compute_only_s, folded, traffic_bound_s
from .candidate import Candidate, assess
from .checkpoint import Checkpoint, checkpoint
from .columns import admitted_groups, box_of, corners_of, gpu_rows, parts_of, store_rows
from .cost import least_line, tangent
from .family import Family
from .hardware import Offer
from .memory import gpu_fits, host_memory, nvme_memory
from .program import TIE, Box, Column, Part, Row
from .run import LEAST_PROGRESS
from .time import refusal
from .transform import Setting
from .units import HOUR_S
from .upkeep import NOTHING
from .workload import Method, Precision, Workload

LARGEST_MICRO_BATCH = 64  # sequences; beyond, matmuls gain nothing and memory always binds
UNKNOWN_STORE = "host RAM or NVMe unknown, and the stack needs it"
FAILING = f"failures or interruptions leave less than {LEAST_PROGRESS:.0%} of the time for training"
MOST_MISSES = 400  # points that the elastic program looks at


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the user asks of the search, besides the workload and the strategies."""

    precision: Precision = Precision.BF16
    max_gpus: int = 1024
    gpus: int | None = None  # exactly so many
    nodes: int | None = None  # exactly so many
    nvme_path: str = "/local_nvme"
    most_usd: float = math.inf  # machines that must cost more are not looked at
    most_hours: float = math.inf  # likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a column came from."""

    offer: Offer
    family: Family
    setting: Setting
    saved: Checkpoint = NOTHING  # what a checkpoint writes


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A point that the exact ledger has confirmed."""

    gpus: int
    usd: float
    run_s: float


@dataclass(slots=True)
class Space:
    """Every column, where it came from, and how many points were dropped for which reason."""

    points: list[Point] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)
    infeasible: list[Column] = field(default_factory=list)  # no point of the box fits in memory
    misses: list[Point] = field(default_factory=list)  # the GPU is too small for any point of the box
    confirmed: dict[Method, list[Known]] = field(default_factory=dict)
    considered: int = 0  # feasible columns, those included that a confirmed one beat
    dropped: Counter[str] = field(default_factory=Counter)
    exact: dict[tuple[int, int, int], Candidate] = field(default_factory=dict)

    def candidate(self, key: int, layers: int, groups: int) -> Candidate:
        """The exact candidate of a point; remembered."""
        at = (key, layers, groups)
        if at not in self.exact:
            p = self.points[key]
            self.exact[at] = assess(
                p.offer, p.family.at(layers, groups), p.setting, method=p.family.method, zero_stage=p.family.zero_stage
            )
        return self.exact[at]


def explore(
    workload: Workload,
    offers: Sequence[Offer],
    families: Sequence[Family],
    demand: Demand,
    progress: Callable[[str], None] = lambda _: None,
) -> Space:
    """Every column that batch, fabric and strategy admit and that could still be the best of its method.

    On given nodes of a given offer, hours are proportional to the step's seconds and dollars never fall with them, so
    under any budget or deadline the quickest column of a method wins. A column is dropped when a confirmed point of its
    method has no more GPUs and is at least as cheap and as quick as the column's lower bounds.
    """
    space = Space()
    by_method = {method: [f for f in families if f.method is method] for method in methods_in(families)}
    groups = [
        _group(workload, nodes, machines, members, demand)
        for (nodes, _), by_machine in _shapes(workload, offers, demand, space).items()
        for machines in by_machine.values()
        for members in by_method.values()
    ]
    hopeful = [g for g in groups if g.least_usd <= demand.most_usd and g.least_hours <= demand.most_hours]
    for done, group in enumerate(sorted(hopeful, key=lambda g: g.least_usd)):
        node = group.offers[0].node
        progress(f"{group.nodes * node.gpus} x {node.gpu.name}: {done + 1} of {len(hopeful)} groups of machines")
        _explore_group(space, group)
    return space


Machine = tuple[object, ...]  # what step time depends on: GPU, GPUs, processors, fabric
Shapes = dict[tuple[int, int], dict[Machine, list[Offer]]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A family at a micro-batch, with the seconds that its step cannot beat."""

    least_s: float
    family: Family
    setting: Setting


@dataclass(frozen=True, kw_only=True)
class Group:
    """One method on one kind of machine: everything that shares rates."""

    method: Method
    nodes: int
    offers: Sequence[Offer]
    trials: Sequence[Trial]  # the most promising first
    least_usd: float  # lower bounds of the whole run, from compute alone
    least_hours: float


def _group(
    workload: Workload, nodes: int, offers: Sequence[Offer], families: Sequence[Family], demand: Demand
) -> Group:
    node, trials = offers[0].node, []
    for micro_batch in _micro_batches(workload, nodes * node.gpus):
        setting = Setting(
            workload=workload,
            nodes=nodes,
            ranks_per_node=node.gpus,
            micro_batch=micro_batch,
            nvme_path=demand.nvme_path,
            live=node.gpu.calibration.live,
        )
        trials += [Trial(least_s=compute_only_s(f, setting, node), family=f, setting=setting) for f in families]
    trials.sort(key=lambda t: (t.least_s, t.family.simplicity, t.setting.micro_batch))
    least_s = trials[0].least_s if trials else math.inf
    lines = [least_line(workload, offer, nodes) for offer in offers]
    return Group(
        method=families[0].method,
        nodes=nodes,
        offers=offers,
        trials=trials,
        least_usd=min(line.usd_at(least_s) for line in lines),
        least_hours=min(line.run_s_at(least_s) for line in lines) / HOUR_S,
    )


def _shapes(workload: Workload, offers: Sequence[Offer], demand: Demand, space: Space) -> Shapes:
    """Offers by (nodes, ranks per node), then by machine; the global batch divides, the fabric is known."""
    shapes: Shapes = {}
    for offer in offers:
        node = offer.node
        reason = refusal(node.gpu, demand.precision)
        if reason:
            space.dropped[reason] += 1
            continue
        machine = (node.gpu.name, node.gpus, node.vcpus, node.internode_bytes_per_s, node.fabric)
        for nodes in _node_counts(workload, offer, demand, space):
            same = machine if nodes > 1 else machine[:3]
            shapes.setdefault((nodes, node.gpus), {}).setdefault(same, []).append(offer)
    return shapes


def _not_let(offer: Offer, nodes: int) -> str:
    """Why so many nodes are not let; empty where they are."""
    least, most = offer.terms.minimum_nodes, offer.terms.maximum_nodes
    if nodes < least:
        return f"fewer than the {least} nodes that {offer.name} is let in at least"
    if most is not None and nodes > most:
        return f"more than the {most} nodes that {offer.name} is let in at most"
    return ""


def _node_counts(workload: Workload, offer: Offer, demand: Demand, space: Space) -> Iterator[int]:
    node = offer.node
    largest = min(demand.max_gpus, demand.gpus or demand.max_gpus, workload.global_batch) // node.gpus
    for nodes in range(1, largest + 1):
        ranks = nodes * node.gpus
        if (demand.gpus and ranks != demand.gpus) or (demand.nodes and nodes != demand.nodes):
            continue
        if reason := _not_let(offer, nodes):
            space.dropped[reason] += 1
        elif workload.global_batch % ranks:
            space.dropped["global batch not divisible by the number of GPUs"] += 1
        elif nodes > 1 and node.internode_bytes_per_s is None:
            space.dropped["several nodes, but the offer's network is unknown (--internode-gbps states it)"] += 1
        else:
            yield nodes


def _micro_batches(workload: Workload, world_size: int) -> Iterator[int]:
    """Powers of two that divide each rank's share of the global batch."""
    share = workload.global_batch // world_size
    size = 1
    while size <= min(share, LARGEST_MICRO_BATCH):
        if share % size == 0:
            yield size
        size *= 2


def _explore_group(space: Space, group: Group) -> None:
    """Columns of one group; what confirmed points of other groups beat is not even looked at."""
    quickest = [_seconds_to_beat(space, group, offer) for offer in group.offers]
    too_large: dict[Family, int] = {}
    for trial in group.trials:
        if trial.least_s > max(quickest) * (1 + TIE) or trial.least_s == math.inf:
            break
        if trial.setting.micro_batch >= too_large.get(trial.family, math.inf):
            continue
        if not _add(space, trial.setting, trial.family, group.offers, quickest):
            too_large[trial.family] = trial.setting.micro_batch


def _seconds_to_beat(space: Space, group: Group, offer: Offer) -> float:
    """Step seconds from which on some confirmed point is at least as cheap and as quick with no more GPUs."""
    if not group.trials:
        return 0.0
    line = least_line(group.trials[0].setting.workload, offer, group.nodes)
    gpus = group.nodes * offer.node.gpus
    known = (p for p in space.confirmed.get(group.method, ()) if p.gpus <= gpus)
    beaten = (max((p.usd - line.usd) / line.usd_per_s, (p.run_s - line.run_s) / line.run_s_per_s) for p in known)
    return min(beaten, default=math.inf)


def longest_stay_s(offer: Offer) -> float:
    """Seconds that a machine is let for at most; infinite where there is no limit."""
    hours = offer.terms.maximum_hours
    return math.inf if hours is None else hours * HOUR_S


def _add(space: Space, setting: Setting, family: Family, offers: Sequence[Offer], quickest: list[float]) -> bool:
    """One column per offer; whether the GPU is large enough for the leanest point of the box.

    ``quickest`` holds each offer's best confirmed seconds, and is brought up to date.
    """
    box, node = box_of(family, setting.model.layers), offers[0].node
    refused = next(
        (r for s in family.at(box.high_layers, box.high_groups).strategies if (r := s.accepts(setting))), None
    )
    if refused:
        space.dropped[refused] += 1
        return True
    leanest = folded(family, setting, box.high_layers, box.high_groups)
    if not gpu_fits(leanest, node.gpu, setting.world_size):
        if setting.micro_batch == 1:
            space.misses += [Point(offer=offer, family=family, setting=setting) for offer in offers]
        return False
    lightest = (
        leanest if box.low_groups == box.high_groups else folded(family, setting, box.high_layers, box.low_groups)
    )
    if traffic_bound_s(lightest, family, setting, node) > max(quickest) * (1 + TIE):
        space.considered += len(offers)
        return True
    _add_columns(space, setting, family, offers, box, quickest)
    return True


def _add_columns(
    space: Space, setting: Setting, family: Family, offers: Sequence[Offer], box: Box, quickest: list[float]
) -> None:
    """The columns of one family and micro-batch: rows and parts are shared, host RAM is each offer's own."""
    node, corners = offers[0].node, corners_of(family, setting, box)
    on_gpu, parts = gpu_rows(corners, box, setting, node.gpu), parts_of(corners, box, setting, node)
    saved = checkpoint(corners[0], setting)
    for index, offer in enumerate(offers):
        stores = store_rows(corners, box, setting, offer.node)
        if stores is None:
            space.dropped[UNKNOWN_STORE] += 1
            continue
        admitted = admitted_groups(family, setting, box, offer.node)
        _add_column(
            space,
            Point(offer=offer, family=family, setting=setting, saved=saved),
            admitted,
            (*on_gpu, *stores),
            parts,
            index,
            quickest,
        )


def build_missed(space: Space) -> None:
    """Columns of the points that no GPU held, for the elastic program; few requests ever need them."""
    for point in space.misses[:MOST_MISSES]:
        _add_columns(
            space,
            point.setting,
            point.family,
            [point.offer],
            box_of(point.family, point.setting.model.layers),
            [math.inf],
        )


def _add_column(
    space: Space,
    point: Point,
    box: Box,
    rows: tuple[Row, ...],
    parts: tuple[Part, ...],
    index: int,
    quickest: list[float],
) -> None:
    """Keep a column unless a confirmed one of the same method on the same nodes beats its bound."""
    setting, offer = point.setting, point.offer
    shape = Column(
        key=len(space.points),
        gpus=setting.world_size,
        simplicity=point.family.simplicity,
        usd_per_s=0.0,
        run_s_per_s=0.0,
        box=box,
        rows=rows,
        parts=parts,
    )
    column = billed(shape, point)
    if column is None:
        space.dropped[FAILING] += 1
        return
    if column.quick is None:
        space.points.append(point)
        space.infeasible.append(column)
        return
    (layers, groups), seconds = column.quick
    space.considered += 1
    floor = least_line(setting.workload, offer, setting.nodes)
    known = Known(gpus=column.gpus, usd=column.usd(seconds), run_s=column.run_s(seconds))
    as_good_s = (known.run_s - floor.run_s) / floor.run_s_per_s  # a step that would take as long with nothing written
    if as_good_s > quickest[index] * (1 + TIE):
        return
    space.points.append(point)
    space.columns.append(column)
    admitted = known.run_s <= column.longest_s
    if admitted and as_good_s < quickest[index] and _fits(space, column.key, layers, groups):
        quickest[index] = as_good_s
        space.confirmed.setdefault(point.family.method, []).append(known)


def billed(shape: Column, point: Point) -> Column | None:
    """A column with the bill of its point; None where failures do not let the run end."""
    setting, offer = point.setting, point.offer
    seconds = shape.quick[1] if shape.quick else shape.least_step_s()
    bill = tangent(setting.workload, offer, setting.nodes, point.saved, seconds)
    if not bill.ends:
        return None
    return replace(
        shape,
        usd_per_s=bill.usd_per_s,
        run_s_per_s=bill.run_s_per_s,
        usd_fixed=bill.usd,
        run_s_fixed=bill.run_s,
        usd_of_run_s=None if offer.terms.is_plain else (lambda run_s: bill_usd(offer, setting.nodes, run_s / HOUR_S)),
        longest_s=longest_stay_s(offer),
    )


def _fits(space: Space, key: int, layers: int, groups: int) -> bool:
    """Whether the exact ledger of a point fits its machine; cheaper than the whole candidate."""
    p = space.points[key]
    ledger = folded(p.family, p.setting, layers, groups)
    node, ranks = p.offer.node, p.setting.ranks_per_node
    return (
        gpu_fits(ledger, node.gpu, p.setting.world_size)
        and host_memory(ledger, node, ranks).fits
        and nvme_memory(ledger, node, ranks).fits
    )


def methods_in(families: Iterable[Family]) -> tuple[Method, ...]:
    """Methods of these families, most faithful first."""
    present = {family.method for family in families}
    return tuple(method for method in Method if method in present)
