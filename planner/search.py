"""From offers and families of stacks to the columns of the integer program, and from its answer back to a candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from .candidate import Candidate, assess, step_parts
from .computation import Computation
from .compute import compute_work
from .cost import run_cost
from .evaluate import activation_entries, complete
from .family import Family
from .hardware import Gpu, Node, Offer
from .ledger import Device, Ledger, Phase
from .memory import fixed_device_bytes, fragmentation_share, gpu_memory, host_memory, nvme_memory
from .model import Model
from .program import TIE, Box, Choice, Column, Limits, Line, Objective, Part, Row, Shortage, shortage, solve
from .states import baseline
from .time import PartTime, price_parts, refusal
from .transform import Setting, Stack, fold
from .units import GIB, HOUR_S
from .workload import Method, Precision, Workload

LARGEST_MICRO_BATCH = 64  # sequences; beyond, matmuls gain nothing and memory always binds
STORAGE_RANK = 50  # strategies below it decide what is computed, those from it on how states are stored
RUNNERS_UP = 12  # columns the program weighs at least, where there are so many
LOOKS = 60  # exact folds spent on finding a good incumbent, at most
MOST_MISSES = 400  # points that the elastic program looks at
ELASTIC = 60  # columns of the elastic program: those that are least infeasible


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the user asks of the search, besides the workload and the strategies."""

    precision: Precision = Precision.BF16
    max_gpus: int = 1024
    gpus: int | None = None  # exactly so many
    nodes: int | None = None  # exactly so many
    nvme_path: str = "/local_nvme"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a column came from."""

    offer: Offer
    family: Family
    setting: Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A point that the exact ledger has confirmed."""

    gpus: int
    usd: float
    hours: float


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

    On given nodes of a given offer, dollars and hours are both proportional to the step's seconds, so under any budget
    or deadline the quickest column of a method wins. A column is dropped when a confirmed point of its method has no
    more GPUs and is at least as cheap and as quick as the column's lower bounds.
    """
    space = Space()
    by_method = {method: [f for f in families if f.method is method] for method in methods_in(families)}
    groups = [
        _group(workload, nodes, machines, members, demand)
        for (nodes, _), by_machine in _shapes(workload, offers, demand, space).items()
        for machines in by_machine.values()
        for members in by_method.values()
    ]
    for done, group in enumerate(sorted(groups, key=lambda g: g.least_usd)):
        progress(
            f"{group.nodes} x {group.offers[0].node.gpus} x {group.offers[0].node.gpu.name}: {done + 1} of {len(groups)} groups of machines"
        )
        _explore_group(space, group)
    return space


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
    least_usd: float


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
        )
        trials += [Trial(least_s=_compute_only_s(f, setting, node), family=f, setting=setting) for f in families]
    trials.sort(key=lambda t: (t.least_s, t.family.simplicity, t.setting.micro_batch))
    least_s = trials[0].least_s if trials else math.inf
    dollars = min(run_cost(workload, offer, nodes, 1.0).usd for offer in offers)
    return Group(method=families[0].method, nodes=nodes, offers=offers, trials=trials, least_usd=dollars * least_s)


Machine = tuple[object, ...]  # what step time depends on: GPU, GPUs, processors, fabric
Shapes = dict[tuple[int, int], dict[Machine, list[Offer]]]


def _shapes(workload: Workload, offers: Sequence[Offer], demand: Demand, space: Space) -> Shapes:
    """Offers by (nodes, ranks per node), then by machine, such that the global batch divides and the fabric is known."""
    shapes: Shapes = {}
    for offer in offers:
        node = offer.node
        reason = refusal(node.gpu, demand.precision)
        if reason:
            space.dropped[reason] += 1
            continue
        machine = (node.gpu.name, node.gpus, node.vcpus, node.internode_bytes_per_s)
        for nodes in _node_counts(workload, node, demand, space):
            same = machine if nodes > 1 else machine[:3]
            shapes.setdefault((nodes, node.gpus), {}).setdefault(same, []).append(offer)
    return shapes


def _node_counts(workload: Workload, node: Node, demand: Demand, space: Space) -> Iterator[int]:
    largest = min(demand.max_gpus, demand.gpus or demand.max_gpus, workload.global_batch) // node.gpus
    for nodes in range(1, largest + 1):
        ranks = nodes * node.gpus
        if (demand.gpus and ranks != demand.gpus) or (demand.nodes and nodes != demand.nodes):
            continue
        if workload.global_batch % ranks:
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
    rates = run_cost(group.trials[0].setting.workload, offer, group.nodes, 1.0) if group.trials else None
    if rates is None:
        return 0.0
    gpus = group.nodes * offer.node.gpus
    known = (p for p in space.confirmed.get(group.method, ()) if p.gpus <= gpus)
    return min((max(p.usd / rates.usd, p.hours / rates.hours) for p in known), default=math.inf)


def _leanest_computation(family: Family, setting: Setting, node: Node) -> Computation | None:
    """What the family computes with the fewest checkpointed layers that activations admit; None where none do."""
    workload = setting.workload
    computation = _computed(family, workload, 1, 1).computation
    return _fewest_layers(setting.model, computation, workload.seq_len, setting.micro_batch, node.gpu.memory_bytes)


def _compute_only_s(family: Family, setting: Setting, node: Node) -> float:
    """Lower bound of the step's seconds: compute alone."""
    computation = _leanest_computation(family, setting, node)
    if computation is None:
        return math.inf
    return (
        _compute_s(setting.model, computation, setting.workload.seq_len, setting.micro_batch, node)
        * setting.gradient_accumulation_steps
    )


@lru_cache(maxsize=65536)
def _compute_s(model: Model, computation: Computation, seq_len: int, micro_batch: int, node: Node) -> float:
    """Seconds of compute of one micro-step."""
    parts = price_parts(
        compute_work(model, computation, seq_len, micro_batch),
        node,
        nodes=1,
        ranks_per_node=node.gpus,
        gradient_accumulation_steps=1,
        precision=computation.precision,
    )
    return sum(part.times * max(part.bounds_s) for part in parts)


def _activations(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """Peak of the activation lines alone."""
    totals: Counter[Phase] = Counter()
    for entry in activation_entries(model, computation, seq_len, micro_batch):
        if entry.device is Device.GPU:
            totals.update(dict.fromkeys(entry.phases, entry.upper_bytes))
    return max(totals.values(), default=0)


@lru_cache(maxsize=65536)
def _fewest_layers(
    model: Model, computation: Computation, seq_len: int, micro_batch: int, capacity_bytes: int
) -> Computation | None:
    """The computation with the fewest checkpointed layers whose activations fit with nothing else on the GPU."""

    def fits(layers: int) -> bool:
        return (
            _activations(model, replace(computation, checkpointed_layers=layers), seq_len, micro_batch)
            <= capacity_bytes
        )

    if not computation.checkpointed_layers:
        return computation if fits(0) else None
    low, high = 1, model.layers + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return replace(computation, checkpointed_layers=low) if low <= model.layers else None


@lru_cache(maxsize=65536)
def _folded(family: Family, setting: Setting, layers: int, groups: int) -> Ledger:
    """The complete ledger of one point; what is computed is folded once for all ranks and micro-batches."""
    storage = tuple(s for s in family.at(layers, groups).strategies if s.rank >= STORAGE_RANK)
    start = _computed(family, setting.workload, layers, setting.micro_batch)
    return complete(fold(start, Stack(storage), setting), setting)


@lru_cache(maxsize=16384)
def _computed(family: Family, workload: Workload, layers: int, micro_batch: int) -> Ledger:
    """The fold's first half: method, optimizer, precision, activations; it knows no ranks."""
    setting = Setting(workload=workload, nodes=1, ranks_per_node=1, micro_batch=micro_batch)
    strategies = family.at(layers, max(1, family.groups)).strategies
    return fold(baseline(setting), Stack(tuple(s for s in strategies if s.rank < STORAGE_RANK)), setting)


def _box(family: Family, layers: int) -> Box:
    low_k, high_k = (1, layers) if family.checkpointing is not None else (0, 0)
    low_g, high_g = (1, family.groups) if family.groups else (0, 0)
    return Box(low_k, high_k, low_g, high_g)


def _add(space: Space, setting: Setting, family: Family, offers: Sequence[Offer], quickest: list[float]) -> bool:
    """One column per offer; whether the GPU is large enough for the leanest point of the box.

    ``quickest`` holds each offer's best confirmed seconds, and is brought up to date.
    """
    box, node = _box(family, setting.model.layers), offers[0].node
    refused = next(
        (r for s in family.at(box.high_layers, box.high_groups).strategies if (r := s.accepts(setting))), None
    )
    if refused:
        space.dropped[refused] += 1
        return True
    leanest = _folded(family, setting, box.high_layers, box.high_groups)
    if not gpu_memory(leanest, node.gpu, setting.world_size).fits:
        if setting.micro_batch == 1:
            space.misses += [Point(offer=offer, family=family, setting=setting) for offer in offers]
        return False
    lightest = (
        leanest if box.low_groups == box.high_groups else _folded(family, setting, box.high_layers, box.low_groups)
    )
    if _bound_s(lightest, family, setting, node) > max(quickest) * (1 + TIE):
        space.considered += len(offers)
        return True
    _add_columns(space, setting, family, offers, box, quickest)
    return True


def _bound_s(lightest: Ledger, family: Family, setting: Setting, node: Node) -> float:
    """Lower bound of the step's seconds: the least compute that activations admit, and the least traffic.

    Of the shares the smallest moves least: what stays on the GPU is updated there, and faster.
    """
    computation = _leanest_computation(family, setting, node)
    if computation is None:
        return math.inf
    return sum(part.times * max(part.bounds_s) for part in step_parts(lightest, computation, setting, node))


def _corners(family: Family, setting: Setting, box: Box) -> tuple[Ledger, ...]:
    """Ledgers at (low k, low g), (high k, low g), (low k, high g): enough for lines in k and g."""
    points = ((box.low_layers, box.low_groups), (box.high_layers, box.low_groups), (box.low_layers, box.high_groups))
    return tuple(_folded(family, setting, k, g) for k, g in points)


def _add_columns(
    space: Space, setting: Setting, family: Family, offers: Sequence[Offer], box: Box, quickest: list[float]
) -> None:
    """The columns of one family and micro-batch: rows and parts are shared, host RAM is each offer's own."""
    node, corners = offers[0].node, _corners(family, setting, box)
    gpu_rows, parts = _gpu_rows(corners, box, setting.world_size, node.gpu), _parts(corners, box, setting, node)
    for index, offer in enumerate(offers):
        stores = _store_rows(corners, box, setting, offer.node)
        if stores is None:
            space.dropped["host RAM or NVMe unknown, and the stack needs it"] += 1
            continue
        admitted = _admitted_groups(family, setting, box, offer.node)
        _add_column(
            space,
            Point(offer=offer, family=family, setting=setting),
            admitted,
            (*gpu_rows, *stores),
            parts,
            index,
            quickest,
        )


def _missed_columns(space: Space) -> None:
    """Columns of the points that no GPU held, for the elastic program; few requests ever need them."""
    for point in space.misses[:MOST_MISSES]:
        _add_columns(
            space,
            point.setting,
            point.family,
            [point.offer],
            _box(point.family, point.setting.model.layers),
            [math.inf],
        )


def _admitted_groups(family: Family, setting: Setting, box: Box, node: Node) -> Box:
    """The box less the shares whose upper bound the host cannot hold.

    Pinned memory is rounded up in steps, so the bound is no line in g; but it grows with g, so a bisection finds its end.
    """
    if box.high_groups == box.low_groups:
        return box

    def fits(groups: int) -> bool:
        return host_memory(_folded(family, setting, box.low_layers, groups), node, setting.ranks_per_node).fits

    low, high = box.low_groups, box.high_groups
    if fits(high):
        return box
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if fits(middle + 1) else (low, middle)
    return replace(box, high_groups=low)


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
    setting = point.setting
    per_step_s = run_cost(
        setting.workload, point.offer, setting.nodes, 1.0
    )  # dollars and hours are proportional to the step's seconds
    column = Column(
        key=len(space.points),
        gpus=setting.world_size,
        simplicity=point.family.simplicity,
        usd_per_s=per_step_s.usd,
        run_s_per_s=per_step_s.hours * HOUR_S,
        box=box,
        rows=rows,
        parts=parts,
    )
    if column.quick is None:
        space.points.append(point)
        space.infeasible.append(column)
        return
    (layers, groups), seconds = column.quick
    space.considered += 1
    if seconds > quickest[index] * (1 + TIE):
        return
    space.points.append(point)
    space.columns.append(column)
    if seconds < quickest[index] and _fits(space, column.key, layers, groups):
        quickest[index] = seconds
        known = Known(gpus=column.gpus, usd=per_step_s.usd * seconds, hours=per_step_s.hours * seconds)
        space.confirmed.setdefault(point.family.method, []).append(known)


def _fits(space: Space, key: int, layers: int, groups: int) -> bool:
    """Whether the exact ledger of a point fits its machine; cheaper than the whole candidate."""
    p = space.points[key]
    ledger = _folded(p.family, p.setting, layers, groups)
    node, ranks = p.offer.node, p.setting.ranks_per_node
    return (
        gpu_memory(ledger, node.gpu, p.setting.world_size).fits
        and host_memory(ledger, node, ranks).fits
        and nvme_memory(ledger, node, ranks).fits
    )


def _line(values: Sequence[float], box: Box) -> Line:
    """The line through three corners: (low, low), (high k, low g), (low k, high g)."""
    base, more_layers, more_groups = values
    per_layer = (more_layers - base) / (box.high_layers - box.low_layers) if box.high_layers > box.low_layers else 0.0
    per_group = (more_groups - base) / (box.high_groups - box.low_groups) if box.high_groups > box.low_groups else 0.0
    return Line(base - per_layer * box.low_layers - per_group * box.low_groups, per_layer, per_group)


def _gpu_rows(corners: Sequence[Ledger], box: Box, world_size: int, gpu: Gpu) -> tuple[Row, ...]:
    """One row per phase, at the upper bound."""
    factor = (1 + fragmentation_share(upper=True)) / GIB
    fixed = fixed_device_bytes(world_size, upper=True) / GIB
    phases = [corner.by_phase(Device.GPU, upper=True) for corner in corners]
    return tuple(
        Row(f"gpu_{phase.value}", _line([fixed + factor * p[phase] for p in phases], box), gpu.memory_bytes / GIB)
        for phase in Phase
    )


def _store_rows(corners: Sequence[Ledger], box: Box, setting: Setting, node: Node) -> tuple[Row, ...] | None:
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


def _parts(corners: Sequence[Ledger], box: Box, setting: Setting, node: Node) -> tuple[Part, ...]:
    """Parts of the step: each at least its compute, and its compute plus the traffic that cannot hide."""
    priced: dict[Ledger, tuple[PartTime, ...]] = {}
    for corner in corners:
        if corner not in priced:
            priced[corner] = step_parts(corner, corner.computation, setting, node)
    times = [priced[corner] for corner in corners]
    return tuple(
        Part(
            first.times,
            tuple(_line([time[index].bounds_s[bound] for time in times], box) for bound in range(len(first.bounds_s))),
        )
        for index, first in enumerate(times[0])
    )


def best(
    space: Space,
    limits: Limits,
    objective: Objective = Objective.COST,
    *,
    keep: Callable[[Point, Column], bool] = lambda p, c: True,
) -> tuple[Candidate, Choice] | None:
    """Solve the program over the columns that pass ``keep``; None where nothing is feasible."""
    columns = [c for c in space.columns if c.gpus <= limits.max_gpus and keep(space.points[c.key], c)]
    pool = _pool(space, columns, limits, objective)

    def dispose(key: int, layers: int, groups: int) -> bool:
        found = space.candidate(key, layers, groups)
        within = found.cost.usd <= limits.budget_usd * (1 + 1e-9) and found.cost.hours * 3600 <= limits.deadline_s * (
            1 + 1e-9
        )
        return found.fits and within

    choice = solve(pool, limits, dispose, objective, considered=space.considered)
    return None if choice is None else (space.candidate(choice.key, choice.layers, choice.groups), choice)


def _pool(space: Space, columns: Sequence[Column], limits: Limits, objective: Objective) -> list[Column]:
    """Columns that may still be best: those whose lower bound is not above the best point found by looking.

    A look costs one exact fold; columns are looked at by their bound, so that few are needed.
    """
    bounds = sorted(((_bound(c, limits, objective), c) for c in columns), key=lambda pair: (pair[0], pair[1].key))
    incumbent, looked, kept = math.inf, 0, list[Column]()
    for bound, column in bounds:
        if not math.isfinite(bound) or (bound > incumbent * (1 + TIE) and len(kept) >= RUNNERS_UP):
            break
        kept.append(column)
        if looked < LOOKS and column.quick is not None:
            looked += 1
            value = _value(column, column.quick[1], objective)
            if value < incumbent and _confirmed(space, column, column.quick[0], limits):
                incumbent = value
    return kept


def _value(column: Column, step_s: float, objective: Objective) -> float:
    """The objective for a step of so many seconds."""
    return {
        Objective.COST: column.usd_per_s * step_s,
        Objective.TIME: column.run_s_per_s * step_s,
        Objective.GPUS: float(column.gpus),
    }[objective]


def _bound(column: Column, limits: Limits, objective: Objective) -> float:
    """Least value of the objective over the box; infinite where the rows or the limits cannot be met."""
    if column.quick is None:
        return math.inf
    least = column.quick[1]
    if column.usd_per_s * least > limits.budget_usd or column.run_s_per_s * least > limits.deadline_s:
        return math.inf
    return _value(column, least, objective)


def _confirmed(space: Space, column: Column, point: tuple[int, int], limits: Limits) -> bool:
    found = space.candidate(column.key, *point)
    return found.fits and found.cost.usd <= limits.budget_usd and found.cost.hours * 3600 <= limits.deadline_s


def closest(space: Space, limits: Limits, methods: Sequence[Method]) -> tuple[Candidate, Shortage] | None:
    """The elastic answer where nothing is feasible: the least infeasible candidate and the constraint it breaks most."""
    if space.misses:
        _missed_columns(space)
        space.misses.clear()
    every = [c for c in space.columns + space.infeasible if space.points[c.key].family.method in methods]
    columns = sorted(every, key=lambda c: _violation(c, limits))[:ELASTIC]
    found = shortage(columns, limits)
    if found is None:
        return None
    column = next(c for c in columns if c.key == found.key)
    point = (column.box.high_layers, column.box.high_groups)
    return space.candidate(found.key, *point), found


def _violation(column: Column, limits: Limits) -> float:
    """Sum of relative excesses at their least."""
    least = column.least_step_s()
    over = [row.line.least(column.box) / max(row.limit, 1.0) - 1 for row in column.rows]
    over += [column.usd_per_s * least / limits.budget_usd - 1, column.run_s_per_s * least / limits.deadline_s - 1]
    over.append(column.gpus / limits.max_gpus - 1)
    return sum(max(0.0, x) for x in over)


def methods_in(families: Iterable[Family]) -> tuple[Method, ...]:
    """Methods of these families, most faithful first."""
    present = {family.method for family in families}
    return tuple(method for method in Method if method in present)
