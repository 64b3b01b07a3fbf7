"""A priced machine, a node count, a stack and a micro-batch, folded to a ledger, seconds, dollars: one exact point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from .checkpoint import checkpoint
from .computation import Computation
from .compute import compute_work
from .cost import Cost, run_cost
from .evaluate import evaluate
from .hardware import Gpu, Node, Offer, bare
from .ledger import Device, Ledger
from .memory import GpuMemory, StoreMemory, gpu_memory, host_memory, nvme_memory
from .model import Model
from .time import Buckets, PartTime, StepTime, compute_sums, pipelined, price, price_parts, step_seconds
from .transform import Setting, Stack
from .units import GIB, gib
from .work import Work
from .workload import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run the job, with everything that is known about it."""

    offer: Offer
    stack: Stack
    method: Method
    zero_stage: int
    setting: Setting
    ledger: Ledger
    gpu: GpuMemory
    host: StoreMemory
    nvme: StoreMemory
    time: StepTime
    cost: Cost

    @property
    def gpus(self) -> int:
        """All ranks, all of them paid for."""
        return self.setting.gpus

    @property
    def fits(self) -> bool:
        """Whether GPU, host RAM and NVMe all hold at their upper bounds."""
        return self.gpu.fits and self.host.fits and self.nvme.fits

    @property
    def layers(self) -> int:
        """Layers checkpointed."""
        return self.ledger.computation.checkpointed_layers


def assess(offer: Offer, stack: Stack, setting: Setting, *, method: Method, zero_stage: int) -> Candidate:
    """Fold, price and bill one point; of a pipeline's stages the fullest gives the memory."""
    ledgers = [(evaluate(stack, each), each) for each in setting.stages]
    ledger, setting = max(ledgers, key=lambda pair: pair[0].peak(Device.GPU, upper=True))
    time = pipelined([step_time(folded, each, offer.node) for folded, each in ledgers], setting.split)
    return Candidate(
        offer=offer,
        stack=stack,
        method=method,
        zero_stage=zero_stage,
        setting=setting,
        ledger=ledger,
        gpu=gpu_memory(ledger, offer.node.gpu, setting.communicators),
        host=host_memory(ledger, offer.node, setting.ranks_per_node),
        nvme=nvme_memory(ledger, offer.node, setting.ranks_per_node),
        time=time,
        cost=_cost(offer, setting, ledger, time, time.step_s),
    )


def _cost(offer: Offer, setting: Setting, ledger: Ledger, time: StepTime, step_s: float) -> Cost:
    evaluation_s = setting.evaluation_micro_steps * time.forward_s * step_s / time.step_s
    saved = checkpoint(ledger, setting)
    return run_cost(setting.workload, offer, setting.nodes, step_s, saved, evaluation_s)


def cost_band(c: Candidate) -> tuple[Cost, Cost]:
    """The run at the quick and at the slow end of the step's 80 % band; whatever else a run takes stays as it is."""
    band = step_seconds(c.time)
    low, upper = (_cost(c.offer, c.setting, c.ledger, c.time, seconds) for seconds in (band.low, band.upper))
    return low, upper


def all_work(ledger: Ledger, setting: Setting) -> tuple[Work, ...]:
    """Compute of one micro-step, and the traffic and updates that the strategies added."""
    return (
        *compute_work(setting.model, ledger.computation, setting.seq_len, setting.micro_batch),
        *ledger.work,
    )


def step_time(ledger: Ledger, setting: Setting, node: Node) -> StepTime:
    """Seconds of one optimizer step, with every term."""
    return price(
        all_work(ledger, setting),
        node,
        nodes=setting.nodes,
        ranks_per_node=setting.ranks_per_node,
        gradient_accumulation_steps=setting.gradient_accumulation_steps,
        layers=setting.model.layers,
        precision=ledger.computation.precision,
        places=setting.places,
    )


def step_parts(ledger: Ledger, computation: Computation, setting: Setting, node: Node) -> tuple[PartTime, ...]:
    """The parts of the step as lower bounds, for the integer program.

    Args:
        ledger: gives traffic and updates.
        computation: gives compute; the ledger's own, or a leaner one for a lower bound.
        setting: ranks and batch.
        node: the machine.
    """
    return price_parts(
        ledger.work,
        node,
        nodes=setting.nodes,
        ranks_per_node=setting.ranks_per_node,
        gradient_accumulation_steps=setting.gradient_accumulation_steps,
        layers=setting.model.layers,
        precision=computation.precision,
        given=_compute_sums(setting.model, computation, setting.workload.seq_len, setting.micro_batch, node.gpu),
    )


@lru_cache(maxsize=65536)
def _compute_sums(model: Model, computation: Computation, seq_len: int, micro_batch: int, gpu: Gpu) -> Buckets:
    work = compute_work(model, computation, seq_len, micro_batch)
    return compute_sums(work, bare(gpu), ranks_per_node=1, precision=computation.precision)


LABELS = {
    "gpu_memory": "GPU memory",
    "host_memory": "host RAM",
    "nvme": "NVMe",
    "max_gpus": "number of GPUs",
    "deadline": "deadline",
    "budget": "budget",
    "maximum_hours": "longest stay",
    "minimum_nodes": "fewest nodes let",
    "maximum_nodes": "most nodes let",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """One constraint of a candidate: what it needs, what there is."""

    name: str
    needs: float
    limit: float | None  # None: unknown
    unit: str
    holds: bool

    @property
    def short(self) -> float:
        """How much is missing; 0 where it holds or nothing is known."""
        return 0.0 if self.limit is None else max(0.0, self.needs - self.limit)

    @property
    def label(self) -> str:
        """What people read: "GPU memory in the loss phase"."""
        name, _, phase = self.name.partition("[")
        return LABELS[name] + (f" in the {phase.rstrip(']').replace('_', ' ')} phase" if phase else "")

    @property
    def brief(self) -> str:
        """What is broken, in a few words: "deadline short by 3.0 h"."""
        return f"{self.label} short by {self._amount(self.short)}"

    def text(self) -> str:
        """One line for people."""
        if not self.needs:
            return f"{self.label}: not used"
        if self.limit is None:
            return f"{self.label}: needs {self._amount(self.needs)}, how much there is is unknown"
        if math.isinf(self.limit):
            return f"{self.label}: {self._amount(self.needs)}, no limit"
        verdict = (
            f"{self._amount(self.short)} short"
            if not self.holds
            else f"{self.needs / self.limit:.1%}"
            if self.limit
            else "holds"
        )
        return f"{self.label}: needs {self._amount(self.needs)} of {self._amount(self.limit)}, {verdict}"

    def _amount(self, value: float) -> str:
        return {"GiB": lambda: gib(value * GIB), "USD": lambda: f"${value:,.2f}", "h": lambda: f"{value:,.1f} h"}.get(
            self.unit, lambda: f"{value:,.0f} {self.unit}"
        )()


def constraints(candidate: Candidate, *, budget_usd: float, deadline_s: float, max_gpus: int) -> tuple[Constraint, ...]:
    """Every constraint of the program, for one candidate, tightest kind first: memory, then time and money."""
    gpu, host, nvme = candidate.gpu, candidate.host, candidate.nvme

    def store(name: str, memory: StoreMemory) -> Constraint:
        limit = None if memory.capacity_bytes is None else memory.capacity_bytes / GIB
        return Constraint(name=name, needs=memory.upper_bound_bytes / GIB, limit=limit, unit="GiB", holds=memory.fits)

    hours = candidate.cost.hours
    return (
        Constraint(
            name=f"gpu_memory[{gpu.fullest.value}]",
            needs=gpu.upper_bound_bytes / GIB,
            limit=gpu.capacity_bytes / GIB,
            unit="GiB",
            holds=gpu.fits,
        ),
        store("host_memory", host),
        store("nvme", nvme),
        Constraint(
            name="max_gpus", needs=candidate.gpus, limit=max_gpus, unit="GPUs", holds=candidate.gpus <= max_gpus
        ),
        Constraint(name="deadline", needs=hours, limit=deadline_s / 3600, unit="h", holds=hours * 3600 <= deadline_s),
        Constraint(
            name="budget",
            needs=candidate.cost.usd,
            limit=budget_usd,
            unit="USD",
            holds=candidate.cost.usd <= budget_usd,
        ),
        *let(candidate),
    )


def let(candidate: Candidate) -> tuple[Constraint, ...]:
    """What the offer is let for at most and at least, where its terms say."""
    terms, nodes, hours = candidate.offer.terms, candidate.setting.nodes, candidate.cost.hours
    found = []
    if (most_h := terms.maximum_hours) is not None:
        found.append(Constraint(name="maximum_hours", needs=hours, limit=most_h, unit="h", holds=hours <= most_h))
    if (most := terms.maximum_nodes) is not None:
        found.append(Constraint(name="maximum_nodes", needs=nodes, limit=most, unit="nodes", holds=nodes <= most))
    if (least := terms.minimum_nodes) > 1:
        found.append(Constraint(name="minimum_nodes", needs=least, limit=nodes, unit="nodes", holds=nodes >= least))
    return tuple(found)
