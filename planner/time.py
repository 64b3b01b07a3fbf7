"""From amounts of work to seconds: one rate per resource, overlap of side streams, one step.

    compute = max(kernels, launches)
    part    = compute + max(side - (1 - 1/L) compute, side / L, interference * collectives)    of L layers
    step    = gas * (forward + backward) + once

Every rate is a datasheet peak times a share from configs/efficiency.toml. Work at the optimizer step hides behind
nothing. What runs on side streams is added up, as if one stream did it: a cautious choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil

from . import host_rates
from .efficiency import architecture_key, figure, optional, value
from .fabrics import every as network_figure
from .fabrics import inside_fabric
from .hardware import Gpu, Node
from .network import COLLECTIVES, collective_s, straggler_factor
from .parallel import Places
from .work import Group, Resource, When, Work
from .workload import Precision


@dataclass(frozen=True, slots=True)
class TimeTerm:
    """One term of a step's time: all of it, and the part that nothing hides."""

    name: str
    seconds_per_step: float
    exposed_s: float
    limited_by: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One optimizer step of one rank; all ranks run alike."""

    forward_s: float  # per micro-step
    backward_s: float  # per micro-step, without what happens once per step
    gradient_accumulation_steps: int
    boundary_s: float  # once per step: last reductions, optimizer, gather of updated weights
    terms: tuple[TimeTerm, ...]
    fill_s: float = 0.0  # once per step: filling and draining a pipeline

    @property
    def step_s(self) -> float:
        """Seconds of one optimizer step."""
        each = self.forward_s + self.backward_s
        return self.gradient_accumulation_steps * each + self.boundary_s + self.fill_s


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity: the shape cache is keyed by it
class Rates:
    """What one rank achieves: peaks times measured shares."""

    matmul_flop_per_s: float  # of a large multiplication
    low_flop_per_s: tuple[
        tuple[int, float], ...
    ]  # the same on operands of 8 and of 4 bits, where the GPU has such units
    element_bytes: int
    multiprocessors: int
    half_k: float
    attention_flop_per_s: float  # of a long sequence
    half_keys: float
    memory_bytes_per_s: float
    launch_s: float
    layers: int  # L: side work of one layer hides behind the compute of another
    interference_share: float
    host_link_bytes_per_s: float
    pageable_bytes_per_s: float
    host_memory_bytes_per_s: float  # this rank's share of the node
    nvme_read_bytes_per_s: float
    nvme_write_bytes_per_s: float


def _peak_flop_per_s(gpu: Gpu, precision: Precision) -> float | None:
    """Datasheet peak of dense multiplications."""
    return {
        Precision.BF16: gpu.bf16_flop_per_s,
        Precision.FP16: gpu.fp16_flop_per_s,
        Precision.FP32: gpu.fp32_flop_per_s,
    }[precision]


MODELLED_VENDORS = ("nvidia", "amd")  # CUDA and ROCm run the same DeepSpeed code paths; others have their own


def refusal(gpu: Gpu, precision: Precision) -> str | None:
    """Why no time can be given, or None."""
    if gpu.vendor not in MODELLED_VENDORS:
        return f"{gpu.name}: kernels and overheads of {gpu.vendor} are not modelled; choose an NVIDIA or AMD GPU"
    if _peak_flop_per_s(gpu, precision):
        return None
    return f"{gpu.name}: no {precision.value} units, or their rate is unknown; choose another GPU or precision"


@lru_cache(maxsize=1024)
def rates(node: Node, ranks_per_node: int, precision: Precision, layers: int = 1) -> Rates:
    """The rates of one rank on a node.

    Raises:
        ValueError: the GPU has no units for this precision; `refusal` says so beforehand.
    """
    gpu = node.gpu
    peak = _peak_flop_per_s(gpu, precision)
    if not peak:
        raise ValueError(refusal(gpu, precision))
    key = architecture_key(gpu.architecture)
    ceiling = gpu.matmul_efficiency or optional("matmul_ceiling", _chip(gpu), key) or value("matmul_ceiling", "other")
    return Rates(
        matmul_flop_per_s=_sustained_flop_per_s(gpu, peak, ceiling, "matmul_energy"),
        low_flop_per_s=_low_rates(gpu),
        element_bytes=precision.bytes,
        multiprocessors=int(value("multiprocessors", key)),
        half_k=value("matmul_shape", "half_k"),
        attention_flop_per_s=peak * value("attention", key),
        half_keys=value("attention_shape", "half_keys"),
        memory_bytes_per_s=gpu.memory_bandwidth_bytes_per_s * value("memory", "bandwidth"),
        launch_s=value("launch", "seconds"),
        layers=layers,
        interference_share=value("overlap", "interference"),
        host_link_bytes_per_s=host_rates.host_link_bytes_per_s(node, ranks_per_node),
        pageable_bytes_per_s=host_rates.pageable_bytes_per_s(node, ranks_per_node),
        host_memory_bytes_per_s=host_rates.cpu_optimizer_bytes_per_s(node, ranks_per_node),
        nvme_read_bytes_per_s=host_rates.nvme_bytes_per_s(node, ranks_per_node, "read"),
        nvme_write_bytes_per_s=host_rates.nvme_bytes_per_s(node, ranks_per_node, "write"),
    )


def _sustained_flop_per_s(gpu: Gpu, peak: float, ceiling: float, energy: str) -> float:
    """What large multiplications keep up: their ceiling's share, or what the power limit lets through."""
    key = architecture_key(gpu.architecture)
    share = peak * ceiling * value("matmul_sustained", "other")
    per_joule = optional(energy, _chip(gpu), key)
    return min(share, per_joule * gpu.tdp_w) if per_joule and gpu.tdp_w else share


def _chip(gpu: Gpu) -> str:
    """The compute capability as the tables name it: "ampere-sm86"."""
    return "-".join(gpu.architecture.lower().split()[:2])


def _low_rates(gpu: Gpu) -> tuple[tuple[int, float], ...]:
    """The same on operands of 8 and 4 bits, where the GPU has such units."""
    key = architecture_key(gpu.architecture)
    eight = gpu.fp8_efficiency or value("fp8_ceiling", key)
    rows = (
        (8, gpu.fp8_flop_per_s, eight, "fp8_energy"),
        (4, gpu.fp4_flop_per_s, value("fp4_ceiling", key), "fp4_energy"),
    )
    return tuple(
        (bits, _sustained_flop_per_s(gpu, peak, ceiling, energy)) for bits, peak, ceiling, energy in rows if peak
    )


TILES = (
    (256, 128),
    (128, 256),
    (128, 128),
    (64, 128),
    (128, 64),
    (32, 64),
    (64, 32),
    (16, 128),
    (128, 16),
)  # rows, columns of one output tile


def matmul_share(shape: tuple[int, int, int], *, multiprocessors: int, half_k: float) -> float:
    """Share of a large multiplication's rate that (m, n, k) reaches with the best tile.

    Formula: k / (k + half_k) * max over tiles of: share(tile) * m n / (waves * multiprocessors * tile's area), with
    waves = ceil(ceil(m / rows) ceil(n / columns) / multiprocessors): partly empty tiles, prologue and epilogue of each
    tile's loop over k, and a last wave of tiles that leaves multiprocessors idle.

    >>> round(matmul_share((8192, 8192, 8192), multiprocessors=128, half_k=0), 3)  # 2048 tiles, 16 full waves
    1.0
    >>> round(matmul_share((128, 128, 1024), multiprocessors=128, half_k=0), 4)  # 8 tiles of 32 x 64 at half a rate
    0.0312
    """
    m, n, k = shape
    return k / (k + half_k) * max(_tiled(m, n, rows, columns, multiprocessors) for rows, columns in TILES)


def _tiled(m: int, n: int, rows: int, columns: int, multiprocessors: int) -> float:
    waves = ceil(ceil(m / rows) * ceil(n / columns) / multiprocessors)
    filled = m * n / (waves * multiprocessors * rows * columns)
    return filled * _tile_share(rows, columns)


@lru_cache(maxsize=16)
def _tile_share(rows: int, columns: int) -> float:
    return value("matmul_tile", f"{max(rows, columns)}x{min(rows, columns)}")


def alignment_share(shape: tuple[int, int, int], element_bytes: float) -> float:
    """Share of the rate left where rows of the operands or of the result do not begin at whole lines of memory.

    Tensor cores need rows of a multiple of 16 bytes; on A100 and later they are fastest from multiples of 128.

    Source:
        NVIDIA Deep Learning Performance guide, Matrix Multiplication, "Tensor Core requirements".

    >>> alignment_share((4096, 4096, 4096), 2), alignment_share((4096, 1800, 4096), 2) < 1
    (1.0, True)
    """
    _, n, k = shape
    rows = [
        size * element_bytes for size in (n, k) if size * element_bytes >= LINE_BYTES
    ]  # shorter ones are read whole
    if all(row % LINE_BYTES == 0 for row in rows):
        return 1.0
    aligned = all(row % VECTOR_BYTES == 0 for row in rows)
    return value("matmul_alignment", "vector" if aligned else "none")


VECTOR_BYTES, LINE_BYTES = 16, 128


@lru_cache(maxsize=65536)
def matmul_s_per_flop(rate: Rates, shape: tuple[int, int, int], bits: int = 0) -> float:
    """Seconds per FLOP of one shape: the slower of the arithmetic and of reading and writing the three matrices."""
    m, n, k = shape
    share = matmul_share(shape, multiprocessors=rate.multiprocessors, half_k=rate.half_k)
    operand = bits / 8 if bits else rate.element_bytes
    traffic = (operand * (m * k + k * n) + rate.element_bytes * m * n) / (2.0 * m * n * k)
    peak = dict(rate.low_flop_per_s).get(bits, rate.matmul_flop_per_s) * alignment_share(shape, rate.element_bytes)
    return max(1.0 / (peak * share), traffic / rate.memory_bytes_per_s)


def attention_s_per_flop(rate: Rates, shape: tuple[int, int, int] | None) -> float:
    """Seconds per FLOP of the flash kernel, slower where queries meet few keys: keys / (keys + half_keys)."""
    share = 1.0 if shape is None else shape[1] / (shape[1] + rate.half_keys)
    return 1.0 / (rate.attention_flop_per_s * share)


def _seconds(work: Work, rate: Rates, node: Node, places: Places) -> float:
    """Time of one amount of work with nothing in its way."""
    match work.resource:
        case Resource.MATMUL:
            per_flop = matmul_s_per_flop(rate, work.shape, work.bits) if work.shape else 1.0 / rate.matmul_flop_per_s
            return work.amount * work.slowed * per_flop
        case Resource.ATTENTION:
            return work.amount * attention_s_per_flop(rate, work.shape)
        case Resource.MEMORY:
            return work.amount / rate.memory_bytes_per_s
        case Resource.LAUNCH:
            return work.amount * rate.launch_s
        case Resource.HOST_TO_GPU | Resource.GPU_TO_HOST:
            return work.amount / rate.host_link_bytes_per_s
        case Resource.PAGEABLE_TO_GPU:
            return work.amount / rate.pageable_bytes_per_s
        case Resource.HOST_MEMORY:
            return work.amount / rate.host_memory_bytes_per_s
        case Resource.NVME_READ:
            return work.amount / rate.nvme_read_bytes_per_s
        case Resource.NVME_WRITE:
            return work.amount / rate.nvme_write_bytes_per_s
    nodes, ranks_per_node = places[work.group]
    return collective_s(
        work.resource,
        work.amount,
        message_bytes=work.message_bytes,
        nodes=nodes,
        ranks_per_node=ranks_per_node,
        node=node,
    )


@dataclass(slots=True)
class _Bucket:
    """Sums of one part of a step while it is priced."""

    kernels_s: float = 0.0
    launches_s: float = 0.0
    side_s: float = 0.0
    collectives_s: float = 0.0  # of side_s
    blocking_s: float = 0.0  # neither compute nor on a side stream: nothing hides it, and it hides nothing
    pipelined_s: dict[Resource, float] = field(default_factory=dict)  # stages of a pipeline over sub-groups

    @property
    def compute_s(self) -> float:
        """Kernels, or their launches where those take longer."""
        return max(self.kernels_s, self.launches_s)


_MICRO_STEP = (When.FORWARD, When.BACKWARD)
_PARTS = tuple(When)
_GPU_WORK = frozenset((Resource.MATMUL, Resource.ATTENTION, Resource.MEMORY))


def _fill(bucket: _Bucket, work: Work, seconds: float) -> None:
    """Add one amount of work to its part."""
    if work.pipelined:
        bucket.pipelined_s[work.resource] = bucket.pipelined_s.get(work.resource, 0.0) + seconds
    elif work.resource is Resource.LAUNCH:
        bucket.launches_s += seconds
    elif work.side:
        bucket.side_s += seconds
        bucket.collectives_s += seconds if work.resource in COLLECTIVES else 0.0
    elif work.resource in _GPU_WORK:
        bucket.kernels_s += seconds
    else:
        bucket.blocking_s += seconds


def exposed_s(side_s: float, collectives_s: float, compute_s: float, *, layers: int, interference: float) -> float:
    """Seconds by which side work of L equal layers lengthens its part.

    Formula: max(side - (1 - 1/L) compute, side / L, interference * collectives). The first layer's side work has
    nothing to hide behind, that of each other layer the compute of the one before; what is longer than that shows.
    Collectives that are hidden still take multiprocessors and memory bandwidth from the kernels they hide behind;
    copies to the host take neither.

    >>> exposed_s(3.0, 3.0, 2.0, layers=2, interference=0.25)  # 1.5 hides behind the other layer's 1.0
    2.0
    >>> exposed_s(0.5, 0.4, 2.0, layers=10, interference=0.25)
    0.1
    """
    return max(side_s - (1 - 1 / layers) * compute_s, side_s / layers, interference * collectives_s)


def _part_s(part: _Bucket, rate: Rates) -> float:
    """Seconds of one part of a micro-step."""
    return part.compute_s + part.blocking_s + _exposed_s(part, rate)


def _exposed_s(part: _Bucket, rate: Rates) -> float:
    return exposed_s(
        part.side_s,
        part.collectives_s,
        part.compute_s,
        layers=rate.layers,
        interference=rate.interference_share,
    )


@dataclass(frozen=True, slots=True)
class PartTime:
    """A part of the step: how often it happens, and lower bounds of its seconds whose maximum it is."""

    times: int
    bounds_s: tuple[float, ...]


def _bounds_s(part: _Bucket, rate: Rates) -> tuple[float, ...]:
    """The maximum of these is `_part_s`; each is linear in the part's work.

    compute + max(side - (1 - 1/L) compute, side / L, interference collectives), compute = max(kernels, launches).
    """
    return tuple(
        bound + part.blocking_s
        for compute in (part.kernels_s, part.launches_s)
        for bound in (
            compute / rate.layers + part.side_s,
            compute + part.side_s / rate.layers,
            compute + rate.interference_share * part.collectives_s,
        )
    )


def _update_bounds_s(update: _Bucket) -> Iterator[float]:
    """The maximum of these is the optimizer step: the slowest stage of the pipeline beside what nothing hides."""
    for compute in (update.kernels_s, update.launches_s):
        for stage in update.pipelined_s.values() or (0.0,):
            yield compute + update.side_s + update.blocking_s + stage


def _both(every: _Bucket, once: _Bucket) -> _Bucket:
    """The last micro-step's part: what every one does and what happens once."""
    return _Bucket(
        kernels_s=every.kernels_s + once.kernels_s,
        launches_s=every.launches_s + once.launches_s,
        side_s=every.side_s + once.side_s,
        collectives_s=every.collectives_s + once.collectives_s,
        blocking_s=every.blocking_s + once.blocking_s,
    )


Buckets = dict[When, _Bucket]


def _priced(
    work: Sequence[Work], rate: Rates, node: Node, places: Places, given: Buckets | None = None
) -> tuple[list[tuple[Work, float]], Buckets, Buckets]:
    """Each amount's seconds, and their sums by part: in every micro-step (on top of ``given``), and once per step."""
    timed = [(item, _seconds(item, rate, node, places)) for item in work]
    every = {when: _both(given[when], _Bucket()) if given else _Bucket() for when in _PARTS}
    once = {when: _Bucket() for when in _PARTS}
    for item, seconds in timed:
        _fill((once if item.once or item.when is When.STEP else every)[item.when], item, seconds)
    return timed, every, once


def compute_sums(compute: Sequence[Work], node: Node, *, ranks_per_node: int, precision: Precision) -> Buckets:
    """Seconds of one micro-step's compute by part, to be shared by all stacks that compute the same."""
    return _priced(compute, rates(node, ranks_per_node, precision), node, {})[1]


def price_parts(
    work: Sequence[Work],
    node: Node,
    *,
    nodes: int,
    ranks_per_node: int,
    gradient_accumulation_steps: int,
    layers: int,
    precision: Precision = Precision.BF16,
    given: Buckets | None = None,
) -> tuple[PartTime, ...]:
    """The step of `price` as parts: sum of times x max(bounds) is its step_s.

    Forward and backward of every micro-step but the last; of the last, with what happens once per step; the update.
    ``given`` are the sums of compute that ``work`` then leaves out.
    """
    rate = rates(node, ranks_per_node, precision, layers)
    _, every, once = _priced(work, rate, node, {Group.DATA: (nodes, ranks_per_node)}, given)
    update, late = once[When.STEP], straggler_factor(nodes * ranks_per_node)
    parts = (
        *(PartTime(gradient_accumulation_steps - 1, _bounds_s(every[when], rate)) for when in _MICRO_STEP),
        *(PartTime(1, _bounds_s(_both(every[when], once[when]), rate)) for when in _MICRO_STEP),
        PartTime(1, tuple(_update_bounds_s(update))),
    )
    return tuple(PartTime(part.times, tuple(late * bound for bound in part.bounds_s)) for part in parts)


def price(
    work: Sequence[Work],
    node: Node,
    *,
    nodes: int,
    ranks_per_node: int,
    gradient_accumulation_steps: int,
    layers: int,
    precision: Precision = Precision.BF16,
    places: Places | None = None,
) -> StepTime:
    """Seconds of one optimizer step from all its work.

    Args:
        work: of one rank: one micro-step's compute and traffic, and what happens once per step.
        node: the machine.
        nodes: n.
        ranks_per_node: GPUs in use in each.
        gradient_accumulation_steps: micro-steps per optimizer step.
        layers: L, over which a micro-step's work is spread.
        precision: of the multiplications.
        places: where each group of ranks lies; None: all ranks are data-parallel.

    Raises:
        ValueError: the GPU has no units for the precision (`refusal`), or the network between nodes is unknown.
    """
    rate = rates(node, ranks_per_node, precision, layers)
    timed, every, once = _priced(work, rate, node, places or {Group.DATA: (nodes, ranks_per_node)})
    last = {when: _both(every[when], once[when]) for when in _MICRO_STEP}
    forward_s, backward_s = (_part_s(every[when], rate) for when in _MICRO_STEP)
    update, late = once[When.STEP], straggler_factor(nodes * ranks_per_node)
    once_s = sum(_part_s(last[when], rate) for when in _MICRO_STEP) - forward_s - backward_s
    alone = StepTime(
        forward_s=forward_s,
        backward_s=backward_s,
        gradient_accumulation_steps=gradient_accumulation_steps,
        boundary_s=once_s + max(_update_bounds_s(update)),
        terms=_terms(timed, every, {**last, When.STEP: update}, rate, gradient_accumulation_steps, node.gpu),
    )
    return _waiting(alone, late - 1.0) if late > 1.0 else alone


STRAGGLERS = "waiting for the slowest rank"


def _waiting(alone: StepTime, share: float) -> StepTime:
    """A step in which every part waits so much longer for the slowest."""
    waited = share * alone.step_s
    term = TimeTerm(STRAGGLERS, waited, waited, "stragglers", network_figure("straggler").source)
    return replace(
        alone,
        forward_s=alone.forward_s * (1 + share),
        backward_s=alone.backward_s * (1 + share),
        boundary_s=alone.boundary_s * (1 + share),
        terms=(*alone.terms, term),
    )


def _shown(part: _Bucket, rate: Rates, *, hides: bool) -> tuple[float, float]:
    """Shares of a part's side work and of its launches that lengthen it."""
    side = 1.0
    if hides:
        side = _exposed_s(part, rate) / part.side_s if part.side_s else 0.0
    launches = max(0.0, part.launches_s - part.kernels_s) / part.launches_s if part.launches_s else 0.0
    return side, launches


def _slowest(part: _Bucket) -> Resource | None:
    """The stage that sets the pace of a pipeline; the others hide behind it."""
    return max(part.pipelined_s, key=part.pipelined_s.__getitem__, default=None)


def _share(work: Work, shown: tuple[float, float]) -> float:
    """Share of one amount of work that lengthens its part."""
    if work.resource is Resource.LAUNCH:
        return shown[1]
    return shown[0] if work.side else 1.0


def _terms(
    timed: Sequence[tuple[Work, float]],
    every: dict[When, _Bucket],
    last: dict[When, _Bucket],
    rate: Rates,
    micro_steps: int,
    gpu: Gpu,
) -> tuple[TimeTerm, ...]:
    """One term per name and resource; the exposed seconds of all terms add up to the step."""
    usual = {when: _shown(every[when], rate, hides=True) for when in _MICRO_STEP}
    final = {when: _shown(part, rate, hides=when is not When.STEP) for when, part in last.items()}
    slowest = _slowest(last[When.STEP])
    totals: dict[tuple[str, Resource], list[float]] = {}
    for work, seconds in timed:
        total = totals.setdefault((work.name, work.resource), [0.0, 0.0])
        shown = float(work.resource is slowest) if work.pipelined else _share(work, final[work.when])
        times = 1
        if not work.once and work.when is not When.STEP:
            times = micro_steps
            shown += (micro_steps - 1) * _share(work, usual[work.when])
        total[0] += seconds * times
        total[1] += seconds * shown
    sources = _sources(architecture_key(gpu.architecture), inside_fabric(gpu, 8).share.source)
    return tuple(
        TimeTerm(name, total[0], total[1], resource.value, sources[resource])
        for (name, resource), total in totals.items()
    )


@lru_cache(maxsize=64)
def _sources(architecture: str, network: str) -> dict[Resource, str]:
    """Where each resource's share was read."""
    sources = dict.fromkeys(COLLECTIVES, network)
    sources[Resource.MATMUL] = figure("matmul_sustained", "other").source
    sources[Resource.ATTENTION] = figure("attention", architecture).source
    sources[Resource.MEMORY] = figure("memory", "bandwidth").source
    sources[Resource.LAUNCH] = figure("launch", "seconds").source
    sources[Resource.HOST_TO_GPU] = sources[Resource.GPU_TO_HOST] = figure("host_link", "share").source
    sources[Resource.PAGEABLE_TO_GPU] = figure("host_link", "pageable_bytes_per_s").source
    sources[Resource.HOST_MEMORY] = figure("host_memory", "share").source
    sources[Resource.NVME_READ] = sources[Resource.NVME_WRITE] = figure("nvme", "gen5_read_per_gpu").source
    return sources
