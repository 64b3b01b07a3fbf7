"""What occupies one GPU, its share of the host and of the NVMe, line by line, and in which phase of a step.

Peak memory is the maximum over phases of the lines alive in them, never the sum of all lines.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache, reduce
from typing import Any

import numpy as np

from .computation import Computation
from .knobs import CHOSEN, Knobs
from .work import Work
from .workload import Precision


class Device(Enum):
    """Where bytes live."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    GPU = "gpu"
    HOST = "host"
    NVME = "nvme"


class Phase(Enum):
    """Moments of a run at which a device may be fullest."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    START = "start"  # the engine is built
    FORWARD = "forward"  # end of the last layer's forward
    LOSS = "loss"  # logits, their fp32 copy and gradient
    BACKWARD = "backward"  # first layer to go backward: everything saved is alive
    RECOMPUTE = "recompute"  # first checkpointed segment to be recomputed
    BACKWARD_END = "backward_end"  # last layer to go backward: all gradients exist
    STEP = "step"  # optimizer update
    SAVE = "save"  # between steps: weights and states are written to disk


ALWAYS = tuple(Phase)
DEVICES = tuple(Device)
TRAINING = tuple(p for p in Phase if p not in (Phase.START, Phase.SAVE))
SINCE_THE_FIRST_STEP = (*TRAINING, Phase.SAVE)
BACKWARDS = (Phase.BACKWARD, Phase.RECOMPUTE, Phase.BACKWARD_END)


class Certainty(Enum):
    """How a line's bytes are known."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    EXACT = "exact"  # arithmetic on tensors that a real engine was seen to hold
    TRACED = "traced"  # replayed layer or closed form, checked against a traced model
    MEASURED = "measured"
    ASSUMED = "assumed"


# How far a line may be off, as a share of its bytes. TRACED: what is claimed for every family; the rows of
# tests/oracles/test_ledger_against_trace.py are nearer, Mamba and Jamba at other lengths are not.
# ASSUMED: layouts of other frameworks, by their measured runs (docs/reference/evidence.md). Lines with a bound of their
# own state it besides.
MARGINS = {Certainty.EXACT: 0.0, Certainty.TRACED: 0.02, Certainty.MEASURED: 0.03, Certainty.ASSUMED: 0.03}


class Item(Enum):
    """Every line a ledger may hold: its label, and its section of docs/explanation/memory-model.md."""

    __hash__ = object.__hash__

    WEIGHTS = ("trainable weights", "W1")
    FROZEN = ("frozen weights", "W2")
    QUANTIZED = ("frozen weights, NF4", "W3")
    SCALES = ("NF4 scales", "W3")
    DEQUANTIZED = ("dequantisation buffer", "W4")
    GATHERED = ("gathered parameters", "W5")
    RETAINED = ("gathered NF4 weights that autograd keeps", "W5")
    PERSISTENT = ("persistent parameters", "W6")
    FLATTENING = ("start-up temporaries", "W7")
    WEIGHTS_HOST_COPY = ("16-bit staging copy of updated weights", "W8")
    MASTER = ("fp32 master weights", "O1")
    MOMENTS = ("optimizer states", "O2")
    STEP_TEMPORARIES = ("optimizer step temporaries", "O3")
    NORM_TEMPORARY = ("gradient norm temporary, fp64", "O4")
    SWAP_BUFFERS = ("NVMe swap buffers", "O5")
    GRADIENTS = ("gradients", "G1")
    ACCUMULATED = ("accumulated gradients of earlier micro-steps", "G2")
    REDUCE_BUCKET = ("gradient reduce bucket", "G3")
    GRADIENT_FLATTENING = ("gradient all-reduce copy", "G4")
    GRADIENTS_HOST = ("fp32 gradients", "G5")
    OFFLOAD_STAGING = ("gradient staging for offload", "G6")
    IN_FLIGHT = ("gradients of the layer in flight", "G7")
    SAVED = ("activations saved for backward", "A1")
    CHECKPOINTS = ("activation checkpoints", "A2")
    SEGMENT = ("recomputed segment", "A3")
    TRANSIENT = ("backward temporaries of one layer", "A4")
    FORWARD = ("forward temporaries of one layer", "A4")
    LOGITS = ("logits and loss", "A5")
    HEAD = ("final norm and head input", "A6")
    CONSTANTS = ("rotary tables and masks", "A7")
    WAITING = ("activations of other micro-batches in flight", "A8")
    PROCESS = ("process and libraries", "F3")
    LOADING = ("model loading", "F4")
    SAVING = ("checkpoint saving", "F5")

    @property
    def label(self) -> str:
        """What people read."""
        return self.value[0]

    @property
    def section(self) -> str:
        """Section of the memory model."""
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line: what, where, how many bytes per rank, when, and the arithmetic behind it."""

    item: Item
    device: Device
    bytes: int
    phases: tuple[Phase, ...]
    why: str
    certainty: Certainty = Certainty.EXACT
    source: str = ""
    upper: int = 0  # upper bound where it differs from ``bytes``; 0: the same

    @property
    def upper_bytes(self) -> int:
        """The bytes that decide what fits: what the line itself states, and what its certainty leaves open."""
        most = self.bytes + self.margin_bytes
        return most if most > self.upper else self.upper

    @property
    def margin_bytes(self) -> int:
        """How far the line may be off, by its certainty."""
        share = MARGINS[self.certainty]
        return int(self.bytes * share) if share else 0


@dataclass(frozen=True, eq=False)
class Tensors:
    """The element counts of a set of tensors, in the order DeepSpeed flattens them; compared by identity.

    Args:
        numels: of tensors that all ranks have.
        experts: of those that a rank shares with few others, as experts are spread.
        expert_ranks: x, ranks with different experts; d / x have the same.
    """

    numels: tuple[int, ...]
    experts: tuple[int, ...] = ()
    expert_ranks: int = 1

    @cached_property
    def total(self) -> int:
        """Elements of all tensors."""
        return sum(self.numels) + sum(self.experts)

    @cached_property
    def largest(self) -> int:
        """Elements of the largest tensor; 0 for none."""
        return max((*self.numels, *self.experts), default=0)

    @cached_property
    def histogram(self) -> tuple[tuple[int, int], ...]:
        """(numel, how many tensors have it)."""
        return tuple(Counter((*self.numels, *self.experts)).items())

    @cached_property
    def parts(self) -> tuple[Tensors, Tensors]:
        """Tensors of all ranks, and the experts', which DeepSpeed and Megatron cut apart from each other."""
        return Tensors(self.numels), Tensors(self.experts)

    def groups(self, ranks: int) -> tuple[tuple[Tensors, int], ...]:
        """Tensors that are cut together, and over how many of so many ranks.

        >>> [(t.numels, ranks) for t, ranks in Tensors((6,), (8, 8), expert_ranks=4).groups(16)]
        [((6,), 16), ((8, 8), 4)]
        """
        if not self.experts:
            return ((self, ranks),)
        shared, experts = self.parts
        return (shared, ranks), (experts, max(1, ranks // self.expert_ranks))


@lru_cache(maxsize=8192)
def flat_partition(tensors: Tensors, ranks: int, alignment: int = 2) -> int:
    """Elements of one rank's slice of a flat buffer padded to ``alignment`` x ranks (ZeRO stages 1 and 2).

    Source:
        DeepSpeed 0.19.8 runtime/zero/stage_1_and_2.py, ``flatten_dense_tensors_aligned`` with
        nccl_start_alignment_factor 2.

    >>> flat_partition(Tensors((5, 4)), 2)  # 9 elements padded to 12
    6
    """
    return sum(-(-t.total // (alignment * r)) * alignment for t, r in tensors.groups(ranks))


@lru_cache(maxsize=8192)
def flat_elements(tensors: Tensors, ranks: int) -> int:
    """Elements of the whole flat buffer that one rank's slice is cut from.

    >>> flat_elements(Tensors((5, 4)), 2)
    12
    """
    return sum(flat_partition(t, r) * r for t, r in tensors.groups(ranks))


@lru_cache(maxsize=8192)
def moved_elements(tensors: Tensors, ranks: int) -> float:
    """Elements whose ring over all ranks takes as long as the tensors' own rings: experts' have fewer ranks.

    Formula: sum over groups of N (1 - 1 / r) / (1 - 1 / d), r the ranks that a group is cut over.

    >>> moved_elements(Tensors((5, 4)), 2), moved_elements(Tensors((6,), (8,), expert_ranks=2), 2)
    (9.0, 6.0)
    """
    if not tensors.experts or ranks == 1:
        return float(tensors.total)
    return sum(t.total * (1 - 1 / r) / (1 - 1 / ranks) for t, r in tensors.groups(ranks))


@lru_cache(maxsize=8192)
def tensor_partition(tensors: Tensors, ranks: int) -> int:
    """Elements one rank holds when each tensor is cut on its own and padded (ZeRO stage 3).

    Source:
        DeepSpeed 0.19.8 runtime/zero/partition_parameters.py, ``_aligned_size``: ceil(numel / ranks) per tensor.

    >>> tensor_partition(Tensors((5, 4)), 2)
    5
    """
    return sum(-(-numel // r) * count for t, r in tensors.groups(ranks) for numel, count in t.histogram)


@lru_cache(maxsize=8192)
def touched(tensors: Tensors, ranks: int, *, padded: bool = False) -> int:
    """P_touch: elements of all tensors that overlap one rank's slice, for the worst rank (ZeRO stages 1 and 2).

    Source:
        DeepSpeed 0.19.8 stage_1_and_2.py, ``copy_grads_in_partition``: gradients are kept as whole tensors;
        ``get_flat_partition`` adds zeros where a slice ends beyond the last tensor, counted if ``padded``.

    >>> touched(Tensors((6, 2)), 2)  # rank 0 holds elements 0-3 of tensor 0; rank 1 the rest and tensor 1
    8
    >>> touched(Tensors((6, 3)), 1, padded=True)  # 9 elements padded to 10
    10
    """
    return sum(_touched(t, r, padded=padded) for t, r in tensors.groups(ranks))


def _touched(tensors: Tensors, ranks: int, *, padded: bool) -> int:
    if not tensors.numels:
        return 0
    ends = np.cumsum(np.asarray(tensors.numels, dtype=np.int64))
    starts = ends - np.asarray(tensors.numels, dtype=np.int64)
    size = flat_partition(tensors, ranks)
    lower = np.arange(ranks, dtype=np.int64) * size
    upper = np.minimum(lower + size, ends[-1])
    inside = lower < ends[-1]
    first = np.searchsorted(ends, lower[inside], side="right")
    last = np.searchsorted(starts, upper[inside], side="left") - 1
    padding = lower[inside] + size - upper[inside] if padded else 0
    return int((ends[last] - starts[first] + padding).max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """What an optimizer keeps per trained element, besides the fp32 master copy, and how DeepSpeed is told about it."""

    name: str
    state_bytes: float  # per element
    deepspeed: str | None  # optimizer.type in ds_config.json; None: the training script passes the optimizer
    source: str
    step_bytes: float = 0  # temporaries per element that is updated at once
    flat_bytes: float = 0  # per element at stage 0 in 16 bit, where the engine flattens its fp32 gradients
    offloaded_bytes: float = 0  # of states per element on the host, where DeepSpeed's own keeps more; 0: as many

    @property
    def host_bytes(self) -> float:
        """Bytes of states per element on the host."""
        return self.offloaded_bytes or self.state_bytes


ADAMW = Optimizer(
    name="adamw",
    state_bytes=8,
    deepspeed="AdamW",
    source="two fp32 moments; measured on DeepSpeed 0.19.8 engines",
)


def merged(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Nested union of two configurations; the right one wins, and None takes a key away.

    >>> merged({"a": {"x": 1, "z": 0}}, {"a": {"y": 2, "z": None}, "b": 3})
    {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    union = dict(left)
    for key, value in right.items():
        before = union.get(key)
        union[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return {key: value for key, value in union.items() if value is not None}


@dataclass(frozen=True, eq=False)  # compared by identity: caches are keyed by ledger
class Ledger:
    """Memory and work of one rank. A strategy turns one ledger into the next."""

    trainable: Tensors
    frozen: Tensors
    computation: Computation
    entries: tuple[Entry, ...] = ()
    work: tuple[Work, ...] = ()  # traffic and optimizer work; forward and backward compute follow from `computation`
    optimizer: Optimizer = ADAMW
    stage: int | None = None  # ZeRO stage the state lines are written for; None: not yet written
    accumulation: Precision | None = None  # type that gradients are summed in; None: what the stage does by itself
    zero_init: bool = True  # stage 3: the model is built in partitions, as transformers does under HfDeepSpeedConfig
    config: tuple[dict[str, Any], ...] = ()  # DeepSpeed keys in the order strategies stated them; `deepspeed` merges
    knobs: Knobs = CHOSEN  # sizes of ZeRO's buffers, where a configuration gives them

    def _with(
        self,
        *,
        entries: tuple[Entry, ...] | None = None,
        work: tuple[Work, ...] | None = None,
        config: tuple[dict[str, Any], ...] | None = None,
    ) -> Ledger:
        """`dataclasses.replace` for the three fields that change most: folding is the planner's hot path."""
        return Ledger(
            self.trainable,
            self.frozen,
            self.computation,
            self.entries if entries is None else entries,
            self.work if work is None else work,
            self.optimizer,
            self.stage,
            self.accumulation,
            self.zero_init,
            self.config if config is None else config,
            self.knobs,
        )

    def without(self, *items: Item) -> Ledger:
        """This ledger less every line of these items."""
        return self._with(entries=tuple(e for e in self.entries if e.item not in items))

    def plus(self, *entries: Entry) -> Ledger:
        """This ledger with more lines; lines of no bytes are left out."""
        return self._with(entries=self.entries + tuple(e for e in entries if e.bytes))

    def doing(self, *work: Work) -> Ledger:
        """This ledger with more work; work of no amount is left out."""
        return self._with(work=self.work + tuple(w for w in work if w.amount))

    def not_doing(self, *names: str) -> Ledger:
        """This ledger less the work of these names."""
        return self._with(work=tuple(w for w in self.work if w.name not in names))

    def keys(self, **keys: Any) -> Ledger:
        """This ledger with more DeepSpeed keys."""
        return self._with(config=(*self.config, keys))

    @property
    def deepspeed(self) -> dict[str, Any]:
        """All keys; sections are merged, later strategies win."""
        return reduce(merged, self.config, {})

    def bytes_of(self, *items: Item, device: Device = Device.GPU) -> int:
        """Bytes of all lines of these items on a device."""
        return sum(e.bytes for e in self.entries if e.item in items and e.device is device)

    def by_phase(self, device: Device, *, upper: bool = False) -> dict[Phase, int]:
        """Bytes alive on a device in each phase: the point estimate, or the upper bound."""
        return self._totals[device][upper]

    @cached_property
    def _totals(self) -> dict[Device, tuple[dict[Phase, int], dict[Phase, int]]]:
        """For each device: point estimates and upper bounds by phase."""
        totals = {device: (dict.fromkeys(ALWAYS, 0), dict.fromkeys(ALWAYS, 0)) for device in DEVICES}
        for entry in self.entries:
            point, upper = totals[entry.device]
            size, most = entry.bytes, entry.upper_bytes
            for phase in entry.phases:
                point[phase] += size
                upper[phase] += most
        return totals

    def lowest(self, device: Device, phase: Phase) -> int:
        """The least that the lines of a phase are expected to be together."""
        return sum(e.bytes - e.margin_bytes for e in self.entries if e.device is device and phase in e.phases)

    def peak(self, device: Device, *, upper: bool = False) -> int:
        """Maximum over the phases."""
        return max(self.by_phase(device, upper=upper).values())
