"""Strategies as memory transforms: the protocol, the stack, the fold.

    ledger_0 --strategy_1--> ledger_1 --strategy_2--> ... --strategy_n--> ledger_n

Folding nothing is the identity; a stack sorts its strategies by rank, so one set of strategies gives one ledger
whatever the order they were typed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import pairwise
from typing import Protocol

from .calibration import AS_COUNTED, Range
from .errors import InputError
from .ledger import Ledger
from .model import Model
from .parallel import WHOLE, Places, Split, longest_stage, places, stage
from .workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where and how a stack is folded: the workload, the ranks, the batch triangle."""

    workload: Workload
    nodes: int
    ranks_per_node: int
    micro_batch: int
    nvme_path: str = "/local_nvme"
    split: Split = WHOLE
    stage_index: int = 0  # which pipeline stage's rank is looked at
    # By which lines that are not exact are larger on this platform; one value in a search, so that no hash needs it.
    live: Range = field(default=AS_COUNTED, hash=False)

    @property
    def model(self) -> Model:
        """What one rank holds and computes: the workload's model, or its share of a stage."""
        return self.workload.model if self.split is WHOLE else stage(self.workload.model, self.split, self.stage_index)

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence that one rank computes."""
        return -(-self.workload.seq_len // self.split.context)

    @property
    def gpus(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def data_parallel(self) -> int:
        """Copies of the model, each with sequences of its own."""
        return self.gpus // self.split.ranks

    @property
    def world_size(self) -> int:
        """d: ranks that share a rank's states: the data-parallel ones, and those that cut its sequences."""
        return self.data_parallel * self.split.context

    @property
    def gradient_accumulation_steps(self) -> int:
        """global batch / (micro-batch x data-parallel ranks); candidates divide evenly."""
        return max(1, self.workload.global_batch // (self.micro_batch * self.data_parallel))

    @property
    def communicators(self) -> int:
        """Groups of more than one rank that a rank belongs to; expert parallelism has one of its own."""
        split = self.split
        return sum(size > 1 for size in (self.data_parallel, split.tensor, split.pipeline, split.context, split.expert))

    @property
    def places(self) -> Places:
        """Where the groups of ranks lie."""
        return places(self.split, self.data_parallel, self.ranks_per_node)

    @property
    def stages(self) -> tuple[Setting, ...]:
        """The first, the longest and the last stage of the pipeline, each once."""
        ends = (0, longest_stage(self.workload.model.layers, self.split), self.split.pipeline - 1)
        return tuple(replace(self, stage_index=index) for index in dict.fromkeys(ends))

    @property
    def evaluation_micro_steps(self) -> float:
        """Forward passes of evaluation per optimizer step: eval tokens / (tokens of a micro-step x steps between)."""
        run = self.workload.run
        if not run.eval_every or not run.eval_tokens:
            return 0.0
        micro_step = self.micro_batch * self.data_parallel * self.workload.seq_len
        return -(-run.eval_tokens // micro_step) / run.eval_every


class Strategy(Protocol):
    """One decision. Implementations are frozen dataclasses, one file each in ``strategies/``."""

    @property
    def rank(self) -> int:
        """Place in the fold: method 10, optimizer 20, precision 30, activations 40, ZeRO 50, offload 60."""

    @property
    def name(self) -> str:
        """Short name, as typed after --require and --forbid: "zero-3", "offload-optimizer-cpu"."""

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table (configs/compatibility.toml) may ask about."""

    def accepts(self, setting: Setting) -> str | None:
        """Why this setting is refused, or None."""

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """The ledger after this decision, its DeepSpeed keys included."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Strategies in the order they are folded."""

    strategies: tuple[Strategy, ...] = ()

    @classmethod
    def of(cls, *strategies: Strategy) -> Stack:
        """Sort by rank; two decisions of one kind contradict each other.

        Raises:
            InputError: two strategies have one rank.
        """
        ordered = tuple(sorted(strategies, key=lambda s: s.rank))
        for left, right in pairwise(ordered):
            if left.rank == right.rank:
                raise InputError(f"strategies: {left.name} and {right.name} exclude each other; give one of them")
        return cls(ordered)

    @property
    def facts(self) -> dict[str, object]:
        """All facts of all strategies."""
        return {key: value for s in self.strategies for key, value in s.facts.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Names in fold order."""
        return tuple(s.name for s in self.strategies)


def fold(ledger: Ledger, stack: Stack, setting: Setting) -> Ledger:
    """Apply a stack to a ledger, in the order of the strategies' ranks."""
    return reduce(lambda before, strategy: strategy.apply(before, setting), stack.strategies, ledger)
