"""Tensor, pipeline, context and expert parallelism as one rank's share of a model.

Symbols: t tensor-parallel, p pipeline-parallel, c context-parallel, x expert-parallel size; L layers, m micro-batches
of one optimizer step.

A rank's share is again a `Model`, so that state lines and closed forms of activations apply to it unchanged.

Source:
    Shoeybi et al. 2019 (arXiv:1909.08053) §3: heads, MLP width and vocabulary are cut; Narayanan et al. 2021
    (arXiv:2104.04473) §2.2: layers are cut into stages; Korthikanti et al. 2022 (arXiv:2205.05198) §4.2.2: sequence
    parallelism cuts what tensor parallelism leaves whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from .model import ATTENTION_OUT, MLP_OUT, Attention, Block, Mlp, Model, Parameter, ParameterKind
from .work import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How one copy of a model is cut over ranks; data parallelism multiplies it.

    >>> Split(tensor=8, pipeline=12).ranks
    96
    """

    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1  # model chunks of one pipeline rank (interleaved schedule)
    context: int = 1
    expert: int = 1
    sequence: bool = False  # Megatron's sequence parallelism: norms and residuals are cut over the tensor ranks

    @property
    def ranks(self) -> int:
        """Ranks that hold one copy; expert parallelism re-uses data-parallel ranks."""
        return self.tensor * self.pipeline * self.context


WHOLE = Split()

Places = Mapping[Group, tuple[int, int]]  # of each group: nodes it spans, its ranks in each of them


def places(split: Split, data: int, gpus_per_node: int) -> Places:
    """Where the groups of one rank lie: tensor ranks side by side, then context, data, pipeline; experts inside data.

    Args:
        split: t, c, x and p.
        data: data-parallel ranks.
        gpus_per_node: GPUs of one node, or of one NVLink domain.

    Source:
        Megatron-LM core/parallel_state.py, order "tp-cp-ep-dp-pp".

    >>> places(Split(tensor=4, pipeline=2), 4, 8)[Group.DATA]  # every fourth GPU: two of each node
    (2, 2)
    """
    strides = {
        Group.TENSOR: (split.tensor, 1),
        Group.CONTEXT: (split.context, split.tensor),
        Group.EXPERT: (split.expert, 1),
        Group.DATA: (data, split.tensor * split.context),
        Group.PIPELINE: (split.pipeline, split.tensor * split.context * data),
    }
    return {group: _place(size, stride, gpus_per_node) for group, (size, stride) in strides.items()}


def _place(size: int, stride: int, gpus_per_node: int) -> tuple[int, int]:
    inside = min(size, max(1, gpus_per_node // stride))
    return -(-size // inside), inside


def problems(model: Model, split: Split) -> list[str]:
    """What cannot be cut, in words."""
    heads = [b.attention.heads for b, _ in model.distinct_blocks if b.attention]
    experts = [b.mlp.experts for b, _ in model.distinct_blocks if b.mlp and b.mlp.experts]
    found = []
    if any(n % split.tensor for n in heads):
        found.append(f"{split.tensor} tensor-parallel ranks do not divide {heads[0]} heads")
    if split.pipeline > model.layers:
        found.append(f"{split.pipeline} pipeline stages for {model.layers} layers")
    if any(n % split.expert for n in experts):
        found.append(f"{split.expert} expert-parallel ranks do not divide {experts[0]} experts")
    return found


@lru_cache(maxsize=512)
def stage(model: Model, split: Split, index: int) -> Model:
    """What one rank of pipeline stage ``index`` holds.

    Args:
        model: the whole.
        split: t, p and x.
        index: 0 is the first stage; it has the embedding, the last one the head (and the tied embedding again).

    Returns:
        A model of ceil(L / p) layers of a/t heads, f/t intermediate features, V/t vocabulary and E/x experts.

    >>> from trainplan.planner.models import load_model
    >>> whole = load_model("llama-2-70b")
    >>> stage(whole, Split(tensor=8, pipeline=4), 1).layers
    20
    """
    if split == WHOLE or (split.tensor, split.pipeline, split.expert) == (1, 1, 1):
        return model
    first, last = index == 0, index == split.pipeline - 1
    start, end = stage_layers(model.layers, split, index)
    own = model.blocks[start:end]
    cut = {id(block): _block(block, model.hidden, split) for block, _ in model.distinct_blocks}
    tables = tuple(_table(p, split.tensor) for p in model.embedding)
    head = tuple(_table(p, split.tensor) for p in model.head)
    return replace(
        model,
        vocab=_own_rows(model.vocab, split.tensor),
        tied=model.tied and first and last,  # two stages: two copies, whose gradients are summed between them
        embedding=tables if first else tables[:1] if last and model.tied else (),
        blocks=tuple(cut[id(block)] for block in own),
        head=head if last else (),
        expert_ranks=split.expert,
    )


def stage_layers(layers: int, split: Split, index: int) -> tuple[int, int]:
    """Which layers stage ``index`` holds, from first to behind the last.

    L / p each where p divides L; else embedding and head count as a layer each, and all L + 2 are spread evenly.

    Source:
        Megatron-LM ``account_for_embedding_in_pipeline_split`` and ``account_for_loss_in_pipeline_split``; DeepSpeed
        runtime/pipe/module.py, partition method "type:transformer|embedding".

    >>> stage_layers(80, Split(pipeline=4), 3), stage_layers(126, Split(pipeline=8), 0)
    ((60, 80), (0, 15))
    """
    ends = 0 if layers % split.pipeline == 0 else 1
    total = layers + 2 * ends
    start, end = (round(i * total / split.pipeline) - ends for i in (index, index + 1))
    return max(0, start), min(layers, end)


def longest_stage(layers: int, split: Split) -> int:
    """The stage with the most layers; of equals one that is neither first nor last.

    >>> longest_stage(80, Split(pipeline=4)), longest_stage(78, Split(pipeline=12)), longest_stage(2, Split(pipeline=2))
    (1, 2, 0)
    """
    inner = range(1, split.pipeline - 1) or range(1)
    return max(inner, key=lambda index: -int.__sub__(*stage_layers(layers, split, index)))


VOCABULARY_MULTIPLE = 128  # Megatron-LM training/tokenizer, make_vocab_size_divisible_by: rows of each rank


def with_padded_vocabulary(model: Model) -> Model:
    """The model with its vocabulary's tables padded, as frameworks pad that write the model themselves.

    >>> from trainplan.planner.models import load_model
    >>> with_padded_vocabulary(load_model("gpt2")).vocab
    50304
    """

    def padded(parameter: Parameter) -> Parameter:
        rows, *rest = parameter.shape
        if rows != model.vocab:
            return parameter
        return replace(parameter, shape=(own, *rest), fan_out=own if parameter.fan_out else 0)

    own = _padded_rows(model.vocab, 1)
    if own == model.vocab:
        return model
    embedding, head = (tuple(map(padded, tables)) for tables in (model.embedding, model.head))
    return replace(model, vocab=own, embedding=embedding, head=head)


def _own_rows(rows: int, tensor: int) -> int:
    """A rank's rows of a vocabulary's table, padded where it is cut."""
    return rows if tensor == 1 else _padded_rows(rows, tensor)


def _padded_rows(rows: int, tensor: int) -> int:
    return -(-rows // (tensor * VOCABULARY_MULTIPLE)) * VOCABULARY_MULTIPLE


def _table(parameter: Parameter, tensor: int) -> Parameter:
    """A vocabulary's table is cut by rows; norms and positions are whole."""
    if parameter.kind not in (ParameterKind.EMBEDDING, ParameterKind.LINEAR):
        return parameter
    rows, *rest = parameter.shape
    own = _own_rows(rows, tensor)
    return replace(parameter, shape=(own, *rest), fan_out=own if parameter.fan_out else 0)


def _block(block: Block, hidden: int, split: Split) -> Block:
    return replace(
        block,
        parameters=tuple(_parameter(p, hidden, split) for p in block.parameters),
        attention=_attention(block.attention, split.tensor) if block.attention else None,
        mlp=_mlp(block.mlp, split) if block.mlp else None,
    )


def _attention(attention: Attention, tensor: int) -> Attention:
    """Key-value heads are copied where there are fewer than ranks."""
    return replace(attention, heads=max(1, attention.heads // tensor), kv_heads=max(1, attention.kv_heads // tensor))


def _mlp(mlp: Mlp, split: Split) -> Mlp:
    """Dense widths are cut by t; of a mixture each rank has E/x whole experts."""
    if not mlp.experts:
        return replace(mlp, intermediate=-(-mlp.intermediate // split.tensor))
    return replace(
        mlp,
        experts=max(1, mlp.experts // split.expert),
        shared_intermediate=-(-mlp.shared_intermediate // split.tensor),
    )


def _parameter(parameter: Parameter, hidden: int, split: Split) -> Parameter:
    """Projections into heads or MLP features are cut by columns, those back to the hidden size by rows."""
    if parameter.kind is ParameterKind.EXPERTS:
        experts, *rest = parameter.shape
        return replace(parameter, shape=(max(1, experts // split.expert), *rest))
    if parameter.kind is not ParameterKind.LINEAR or split.tensor == 1:
        return parameter
    if parameter.fan_out == hidden and parameter.name.split(".")[-2] in CLOSING:
        fan_in, fan_out = -(-parameter.fan_in // split.tensor), parameter.fan_out
    else:
        fan_in, fan_out = parameter.fan_in, -(-parameter.fan_out // split.tensor)
    return replace(parameter, shape=(fan_out, fan_in), fan_in=fan_in, fan_out=fan_out)


CLOSING = ATTENTION_OUT | MLP_OUT  # what they compute is added to the residual stream


def micro_batches_in_flight(split: Split, index: int, micro_batches: int) -> float:
    """How many micro-batches' activations a stage holds at most, in units of its own layers.

        1F1B: min(p - i, m);  interleaved, first stage: min(m, p (1 + (p - 1) / (p v)))

    Args:
        split: p, and v model chunks a rank.
        index: i, the stage.
        micro_batches: m, of one optimizer step.

    Source:
        Narayanan et al. 2021 §2.2; Korthikanti et al. 2022 §4.2.3.

    >>> micro_batches_in_flight(Split(pipeline=4), 0, 16), micro_batches_in_flight(Split(pipeline=4, virtual=3), 0, 16)
    (4.0, 5.0)
    """
    waiting = float(split.pipeline - index)
    if split.virtual > 1:
        waiting += (split.pipeline - 1) / split.virtual
    return max(1.0, min(waiting, float(micro_batches)))
