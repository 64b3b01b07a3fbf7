"""What surrounds the steps of a run on so many nodes, whatever a step takes: start-up, writing, failures, restarts.

Source:
    configs/run.toml.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from .checkpoint import FILE_BYTES, Checkpoint
from .efficiency import value
from .hardware import Node, Tier
from .renewal import MOST, best_interval_h
from .units import HOUR_S
from .workload import RunOptions, Workload

NOTHING = Checkpoint(weights_bytes=0, module_bytes=0, states_bytes=0, sharded=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What surrounds the steps on so many nodes, whatever a step takes. Hours, and shares of the steps' time."""

    start_up_h: float
    share: float  # stalls, and evaluation where nothing better is known
    evaluation_share: float  # of it
    between_failures_h: float  # M
    restart_h: float  # R
    write_h: float  # C
    interval_h: float  # tau, before a step and the run bound it

    def work_h(self, seconds: float) -> float:
        """Hours of so many seconds of steps, with what stalls and evaluation add."""
        return seconds * (1 + self.share) / HOUR_S

    @property
    def least_stretch(self) -> float:
        """Hours of a run per hour of work, at no less than any interval reaches and with nothing written."""
        return math.exp(min(MOST, self.restart_h / self.between_failures_h))


@dataclass(frozen=True, slots=True)
class Figures:
    """configs/run.toml, read once: the search asks thousands of times."""

    start_h: float
    restart_h: float
    stalls: float
    evaluation: float
    node_bytes_per_h: float
    writer_bytes_per_h: float
    host_link_share: float
    gpu_hours: float
    spot_h: float
    spot_exponent: float


@lru_cache(maxsize=1)
def run_figures() -> Figures:
    """The figures in hours."""
    detect_s, reschedule_s = value("restart", "detect_s"), value("restart", "reschedule_s")
    return Figures(
        start_h=value("start", "seconds") / HOUR_S,
        restart_h=(detect_s + reschedule_s) / HOUR_S,
        stalls=value("stalls", "share"),
        evaluation=value("evaluation", "share"),
        node_bytes_per_h=value("storage", "bytes_per_s_per_node") * HOUR_S,
        writer_bytes_per_h=value("storage", "one_writer_bytes_per_s") * HOUR_S,
        host_link_share=value("host_link", "share"),
        gpu_hours=value("failures", "gpu_hours_between"),
        spot_h=value("spot", "hours_between_interruptions"),
        spot_exponent=value("spot", "nodes_exponent"),
    )


def between_failures_h(
    gpus: int, nodes: int, tier: Tier, mtbf_gpu_hours: float | None = None, spot_h: float | None = None
) -> float:
    """M: hours until something of the cluster fails, or spot capacity is taken away.

    Formula: 1/M = G / MTBF + (on spot) nodes^a / H, rates add; a cluster loses its spot nodes together.

    Args:
        gpus: G.
        nodes: nodes.
        tier: spot nodes are interrupted.
        mtbf_gpu_hours: GPU-hours between failures; None: that of configs/run.toml.
        spot_h: H, hours between interruptions of one spot node; None: likewise.

    >>> round(between_failures_h(16384, 2048, Tier.ON_DEMAND), 2)  # Llama 3 405B: 54 days / 419
    3.09
    """
    known = run_figures()
    rate = gpus / (mtbf_gpu_hours or known.gpu_hours)
    if tier is Tier.SPOT:
        rate += nodes**known.spot_exponent / (spot_h or known.spot_h)
    return 1 / rate


def write_h(
    saved: Checkpoint, nodes: int, *, node_link_bytes_per_s: float = math.inf, storage_bytes_per_s: float | None = None
) -> float:
    """C: hours to write a checkpoint, or to read it.

    Formula: alone / min(one writer, storage) + parallel / min(storage, nodes x host links), in whole seconds: files are
    made and ranks wait for each other, so that small checkpoints all take one.

    Args:
        saved: the checkpoint.
        nodes: that write at once.
        node_link_bytes_per_s: datasheet rate of a node's links between GPUs and host.
        storage_bytes_per_s: of the whole cluster; None: by the number of nodes.
    """
    known = run_figures()
    storage = known.node_bytes_per_h * nodes if storage_bytes_per_s is None else storage_bytes_per_s * HOUR_S
    links = nodes * node_link_bytes_per_s * known.host_link_share * HOUR_S
    hours = saved.alone_bytes / min(known.writer_bytes_per_h, storage) + saved.parallel_bytes / min(storage, links)
    return math.ceil(hours * HOUR_S) / HOUR_S


def upkeep(workload: Workload, node: Node, nodes: int, tier: Tier, saved: Checkpoint = NOTHING) -> Upkeep:
    """What surrounds the steps.

    Args:
        workload: the model that is read, and what the user said of the run.
        node: the machine.
        nodes: how many.
        tier: for spot interruptions.
        saved: the checkpoint; without one, no run takes less.
    """
    return _upkeep(workload.run, workload.model.parameter_count * FILE_BYTES, node, nodes, tier, saved)


@lru_cache(maxsize=65536)
def _upkeep(options: RunOptions, model_bytes: int, node: Node, nodes: int, tier: Tier, saved: Checkpoint) -> Upkeep:
    known = run_figures()
    storage = options.storage_bytes_per_s
    m = between_failures_h(nodes * node.gpus, nodes, tier, options.mtbf_gpu_hours, options.spot_interruption_h)
    m /= options.failures
    c = write_h(
        saved,
        nodes,
        node_link_bytes_per_s=node.gpus * node.gpu.host_link_bytes_per_s,
        storage_bytes_per_s=storage,
    )
    per_node = known.node_bytes_per_h if storage is None else storage * HOUR_S / nodes
    start = known.start_h + model_bytes / per_node  # every node reads the whole model
    evaluation = 0.0 if options.eval_every else known.evaluation
    return Upkeep(
        start_up_h=start,
        share=known.stalls + evaluation,
        evaluation_share=evaluation,
        between_failures_h=m,
        restart_h=known.restart_h + start + c,
        write_h=c,
        interval_h=options.checkpoint_every_s / HOUR_S if options.checkpoint_every_s else best_interval_h(c, m),
    )
