"""Tensor, pipeline, context and expert parallelism: what one rank of a stage passes to the others of its groups.

The stage's `Model` is cut already (`trainplan.planner.parallel.stage`); this adds the traffic of one micro-step.

Symbols: T tokens of a rank, h hidden size, e bytes of an activation, t, c, x, p sizes of the groups, l dense and l_x
mixture layers of the stage, k experts a token.

    tensor     forward  2 all-reduces of T h e a dense layer, 1 a mixture layer (its experts are whole)
               backward the same; sequence parallelism: an all-gather and a reduce-scatter each, and in backward the
               inputs gathered again for the weights' gradients
    context    forward  keys and values of all other ranks pass by: 2 g d T (c - 1) e a layer; backward twice that
    expert     forward  2 exchanges of T k h e a mixture layer (there and back), backward 2
    pipeline   v sends of T h e forward and backward, of each rank's own part of the sequence under sequence parallelism

Recomputation repeats the forward pass's traffic.

Source:
    Shoeybi et al. 2019 (arXiv:1909.08053) §3; Korthikanti et al. 2022 (arXiv:2205.05198) §4.2.2; Narayanan et al. 2021
    (arXiv:2104.04473) §3.2, §4.1; Liu et al. 2023 (arXiv:2310.01889); Lepikhin et al. 2020 (arXiv:2006.16668).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..planner.compatibility import refused
from ..planner.computation import Kernels
from ..planner.errors import InputError
from ..planner.hardware import Node
from ..planner.ledger import Ledger
from ..planner.model import Block, Model
from ..planner.parallel import WHOLE, Split, problems
from ..planner.time.network import domains
from ..planner.transform import Setting, Stack
from ..planner.work import Group, Resource, When, Work
from .kernels import FrameworkKernels

TENSOR, CONTEXT, EXPERT, PIPELINE = (
    "tensor-parallel exchange",
    "context-parallel exchange",
    "expert-parallel exchange",
    "pipeline sends",
)
DENSE_EXCHANGES, MIXTURE_EXCHANGES = 2, 1  # places where tensor-parallel ranks meet: behind attention, behind the MLP
MOST_RANKS = 65_536
SOURCE = "Megatron-LM core/tensor_parallel, core/pipeline_parallel, core/transformer/moe"


@dataclass(frozen=True, slots=True)
class ModelParallel:
    """How the model is cut.

    Args:
        split: sizes of the groups.
        overlapped: tensor-parallel exchanges run beside the multiplications they feed.
        expert_domains: NVLink domains over which experts are spread; a token crosses to each but once.
    """

    split: Split
    overlapped: bool = False
    expert_domains: int = 1
    rank = 45

    @property
    def name(self) -> str:
        """All sizes above one: "tensor-8-sequence-pipeline-4x5": 5 chunks a stage."""
        split = self.split
        sizes = {"tensor": split.tensor, "pipeline": split.pipeline, "context": split.context, "expert": split.expert}
        more = {"tensor": "-sequence" * split.sequence, "pipeline": f"x{split.virtual}" * (split.virtual > 1)}
        return "-".join(f"{name}-{n}{more.get(name, '')}" for name, n in sizes.items() if n > 1) or "whole"

    @property
    def facts(self) -> Mapping[str, object]:
        """What the compatibility table may ask about."""
        return {"pipeline": self.split.pipeline > 1}

    def accepts(self, setting: Setting) -> str | None:
        """Any setting whose model is cut already."""
        return None

    def apply(self, ledger: Ledger, setting: Setting) -> Ledger:
        """Add the traffic of one micro-step."""
        return ledger.doing(*self._work(ledger, setting))

    def _work(self, ledger: Ledger, setting: Setting) -> Iterator[Work]:
        model, split = setting.model, self.split
        tokens = setting.seq_len * setting.micro_batch
        element = ledger.computation.precision.bytes
        whole = float(tokens * model.hidden * element)
        for block, layers in model.distinct_blocks:
            again = min(1.0, ledger.computation.checkpointed_layers / model.layers)
            yield from self._tensor(block, layers, whole, again)
            yield from self._context(block, layers, tokens * element, again)
            yield from self._experts(block, layers, whole, again)
        if split.pipeline > 1:
            message = whole / (split.tensor if split.sequence else 1)
            send = Work(
                name=PIPELINE, resource=Resource.SEND, amount=message * split.virtual, when=When.FORWARD,
                message_bytes=message, group=Group.PIPELINE, side=split.virtual > 1, source=SOURCE,
            )  # fmt: skip
            yield from _both_ways(send, 1.0, 0.0)

    def _tensor(self, block: Block, layers: int, whole: float, again: float) -> Iterator[Work]:
        if self.split.tensor == 1:
            return
        meetings = MIXTURE_EXCHANGES if block.mlp is not None and block.mlp.experts else DENSE_EXCHANGES
        kinds = (Resource.ALL_GATHER, Resource.REDUCE_SCATTER) if self.split.sequence else (Resource.ALL_REDUCE,)
        for kind in kinds:
            exchange = Work(
                name=TENSOR, resource=kind, amount=meetings * layers * whole, when=When.FORWARD,
                message_bytes=whole, group=Group.TENSOR, side=self.overlapped, source=SOURCE,
            )  # fmt: skip
            inputs_again = 2.0 if kind is Resource.ALL_GATHER else 1.0
            yield from _both_ways(exchange, inputs_again, again)

    def _context(self, block: Block, layers: int, token_bytes: float, again: float) -> Iterator[Work]:
        attention = block.attention
        if self.split.context == 1 or attention is None:
            return
        pair = token_bytes * attention.kv_heads * (attention.head_dim + (attention.value_dim or attention.head_dim))
        exchange = Work(
            name=CONTEXT, resource=Resource.SEND, amount=pair * (self.split.context - 1) * layers, when=When.FORWARD,
            message_bytes=pair, group=Group.CONTEXT, side=True, source=SOURCE,
        )  # fmt: skip
        yield from _both_ways(exchange, 2.0, again)

    def _experts(self, block: Block, layers: int, whole: float, again: float) -> Iterator[Work]:
        mlp = block.mlp
        if self.split.expert == 1 or mlp is None or not mlp.experts:
            return
        copies = mlp.experts_per_token * crossing_share(mlp.experts_per_token, self.expert_domains)
        routed = whole * copies / (self.split.tensor if self.split.sequence else 1)
        exchange = Work(
            name=EXPERT, resource=Resource.ALL_TO_ALL, amount=2 * routed * layers, when=When.FORWARD,
            message_bytes=routed, group=Group.EXPERT, source=SOURCE,
        )  # fmt: skip
        yield from _both_ways(exchange, 1.0, again)


def crossing_share(experts_per_token: int, domains: int) -> float:
    """Share of a token's copies left where a domain's experts are sent one for all of them.

        n (1 - (1 - 1 / n)^k) / k     k experts spread evenly over n domains reach so many different ones

    Source:
        DeepSeek-AI 2024 (arXiv:2412.19437) §3.2.2: tokens cross InfiniBand once a node, NVLink passes them on.

    >>> crossing_share(8, 1), round(crossing_share(8, 2), 3)
    (1.0, 0.249)
    """
    if domains == 1:
        return 1.0
    return domains * (1 - (1 - 1 / domains) ** experts_per_token) / experts_per_token


def _both_ways(forward: Work, backward: float, again: float) -> Iterator[Work]:
    """The forward pass's traffic; in backward so many times as much, and recomputation's."""
    yield forward
    amount = forward.amount * (backward + again)
    yield Work(
        name=forward.name, resource=forward.resource, amount=amount, when=When.BACKWARD,
        message_bytes=forward.message_bytes, group=forward.group, side=forward.side, source=forward.source,
    )  # fmt: skip


def cut(stack: Stack, setting: Setting, node: Node) -> Stack:
    """A stack on a model that is cut as the setting says.

    Raises:
        InputError: the stack cannot be combined with it.
    """
    split = setting.split
    if split is WHOLE:
        return stack
    shards = split.tensor if split.sequence else 1
    kernels = FrameworkKernels(Kernels(sequence_shards=shards, context_shards=split.context))
    parallel = ModelParallel(split, expert_domains=expert_domains(setting, node))
    together = Stack.of(*stack.strategies, kernels, parallel)
    if refusal := refused(together.facts):
        raise InputError(f"strategies: {refusal.message()}")
    return together


def expert_domains(setting: Setting, node: Node) -> int:
    """NVLink domains over which one layer's experts are spread."""
    return domains(node, *setting.places[Group.EXPERT])


def check_split(model: Model, split: Split, seq_len: int, gpus: int) -> None:
    """Whether a model and its ranks can be cut so.

    Raises:
        InputError: sizes out of range, or that do not divide.
    """
    sizes = {
        "tensor-parallel": split.tensor, "pipeline-parallel": split.pipeline, "pipeline-chunks": split.virtual,
        "context-parallel": split.context, "expert-parallel": split.expert,
    }  # fmt: skip
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST_RANKS:
            raise InputError(f"--{name}: out of range, got {size!r}; allowed are 1 to {MOST_RANKS:,}")
    found = [*problems(model, split), *_ranks_problems(model, split, gpus)]
    if seq_len % split.context:
        found.append(f"{split.context} context-parallel ranks do not divide {seq_len:,} tokens")
    if found:
        raise InputError(f"model parallelism: {found[0]}; choose sizes that divide")


def _ranks_problems(model: Model, split: Split, gpus: int) -> list[str]:
    copies = gpus // split.ranks
    found = []
    if gpus % split.ranks:
        found.append(f"{gpus} GPUs are not a multiple of {split.ranks} ranks of one copy")
    if split.virtual > 1 and split.pipeline == 1:
        found.append(f"{split.virtual} pipeline chunks without a pipeline")
    if split.virtual * split.pipeline > model.layers:
        found.append(f"{split.pipeline} stages of {split.virtual} chunks for {model.layers} layers")
    elif split.virtual > 1 and all((model.layers + ends) % (split.pipeline * split.virtual) for ends in (0, 2)):
        found.append(f"{split.pipeline} stages of {split.virtual} chunks do not divide {model.layers} layers")
    if split.sequence and split.tensor == 1:
        found.append("sequence parallelism without tensor parallelism")
    if split.expert > 1 and not any(b.mlp is not None and b.mlp.experts for b, _ in model.distinct_blocks):
        found.append(f"{split.expert} expert-parallel ranks for a model without experts")
    if split.expert > 1 and (copies * split.context) % split.expert:
        found.append(f"{split.expert} expert-parallel ranks do not divide {copies * split.context} data-parallel ones")
    return found
