"""What one GPU computes in one micro-step: every matrix multiplication by its shape, attention, memory-bound bytes.

Symbols: T = s*b tokens, h hidden size, f MLP intermediate size, V vocabulary, k checkpointed layers.

Conventions: a multiplication of (m, k) by (k, n) is 2*m*n*k FLOPs. A small part of the work is left out: convolutions
of state-space blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache

from .computation import Adapters, AttentionImplementation, Computation, effective_attention, module_name
from .efficiency import value
from .elementwise import (
    ACTIVATIONS,
    ADAPTER,
    BIAS,
    CROSS_ENTROPY,
    DROPOUT,
    EAGER_SCORES,
    EMBEDDING,
    FAN_OUT,
    FUSED_ACTIVATION,
    GATE_PRODUCT,
    NORMS,
    RESIDUAL,
    ROTARY,
    ROUTING,
    SOFT_CAP,
    STATE_SCAN,
    Elementwise,
    Operation,
    fused,
)
from .gradient_flow import Skipped, first_adapted, skipped, skips
from .model import Attention, AttentionKind, Block, Mlp, MlpKind, Model, NormStyle, Parameter, ParameterKind, StateSpace
from .work import Resource, When, Work

MATMULS = "matrix multiplications"
INPUT_GRADIENTS = "input gradients"
WEIGHT_GRADIENTS = "weight gradients"
ATTENTION = "attention"
ELEMENTWISE = "norms, activations and residuals"
LOSS = "cross-entropy"
DEQUANTISATION = "NF4 dequantisation"
QUANTISATION = "conversion of operands to 8 or 4 bits"
LAUNCHES = "kernel launches"
RECOMPUTE = "recompute of checkpointed layers"


# A 16-bit operand is read and written as it is and transposed in 8 bits. Source: TransformerEngine 2.x, common/cast.
QUANTISE = 2 + 1 + 1

# NF4: half a byte and one fp32 constant per 64 weights are read, two bytes written. Source: bitsandbytes 0.50.2,
# functional.dequantize_4bit with the default block size.
DEQUANTISE_BYTES = 0.5 + 4 / 64 + 2

# Rows of one expert from which a grouped multiplication runs at a dense one's rate: one output tile (CUTLASS default).
GROUP_ROWS = 128

# Multiplications in the flash kernel's backward pass, in units of one Q K^T or one P V: S again, dQ and dK over the
# head size of q and k, dP and dV over that of v. Source: Dao 2023, arXiv:2307.08691, algorithm 2 (2.5 x forward).
FLASH_BACKWARD_QK = 3
FLASH_BACKWARD_V = 2


def _matmul(name: str, shape: tuple[int, int, int], when: When, count: float = 1.0, bits: int = 0) -> Work:
    m, n, k = shape
    flops = 2.0 * m * n * k * count
    return Work(name=name, resource=Resource.MATMUL, amount=flops, when=when, shape=shape, bits=bits)


def _linear(
    tokens: int, fan_in: int, fan_out: int, *, trained: bool, count: float = 1.0, bits: int = 0
) -> Iterator[Work]:
    """y = x W: forward, dX = dY W^T and, where W is trained, dW = X^T dY; converted operands are written first."""
    yield _matmul(MATMULS, (tokens, fan_out, fan_in), When.FORWARD, count, bits)
    yield _matmul(INPUT_GRADIENTS, (tokens, fan_in, fan_out), When.BACKWARD, count, bits)
    if trained:
        yield _matmul(WEIGHT_GRADIENTS, (fan_out, fan_in, tokens), When.BACKWARD, count, bits)
    if bits:
        read, written = (Elementwise(QUANTISE, 0, 1, 0), Elementwise(0, QUANTISE, 0, 1))
        yield from _elementwise(read, tokens * fan_in * count, name=QUANTISATION)
        yield from _elementwise(written, tokens * fan_out * count, name=QUANTISATION)


def _elementwise(
    cost: Elementwise, elements: float, *, name: str = ELEMENTWISE, kernels: float = 1.0
) -> Iterator[Work]:
    """Memory traffic and launches of ``cost`` over so many elements, in ``kernels`` separate calls."""
    for when, amount, launches in (
        (When.FORWARD, cost.forward_bytes, cost.forward_kernels),
        (When.BACKWARD, cost.backward_bytes, cost.backward_kernels),
    ):
        yield Work(name=name, resource=Resource.MEMORY, amount=amount * elements, when=when)
        yield Work(name=LAUNCHES, resource=Resource.LAUNCH, amount=launches * kernels, when=when)


def _launches(forward: float, backward: float) -> Iterator[Work]:
    yield Work(name=LAUNCHES, resource=Resource.LAUNCH, amount=forward, when=When.FORWARD)
    yield Work(name=LAUNCHES, resource=Resource.LAUNCH, amount=backward, when=When.BACKWARD)


def _weight(parameter: Parameter, block: Block, tokens: int, computation: Computation) -> Iterator[Work]:
    """Work of one weight of a layer, its adapter and its dequantisation included."""
    full = computation.adapters is None and not computation.quantized
    if parameter.kind is ParameterKind.LINEAR:
        bits = computation.kernels.matmul_bits
        yield from _linear(tokens, parameter.fan_in, parameter.fan_out, trained=full, bits=bits)
        yield from _launches(1, 2 if full else 1)
        if computation.quantized:
            yield from _dequantisation(parameter)
    elif parameter.kind is ParameterKind.EXPERTS and len(parameter.shape) == 3 and block.mlp is not None:
        routed = tokens // computation.kernels.sequence_shards
        yield from _experts(parameter, block.mlp, routed, trained=full, bits=computation.kernels.matmul_bits)
    elif parameter.kind is ParameterKind.BIAS and full:
        yield from _elementwise(BIAS, tokens * parameter.numel)
    elif _is_router(parameter, block):
        yield from _linear(tokens, parameter.shape[1], parameter.shape[0], trained=full)


def _is_router(parameter: Parameter, block: Block) -> bool:
    """A router held as a bare tensor (experts, hidden); gpt-oss' experts have biases of that form too."""
    mlp = block.mlp
    if mlp is None or not mlp.experts or parameter.kind is ParameterKind.BIAS:
        return False
    return len(parameter.shape) == 2 and parameter.shape[0] == mlp.experts


def _experts(parameter: Parameter, mlp: Mlp, tokens: int, *, trained: bool, bits: int) -> Iterator[Work]:
    """Grouped multiplication: each token goes through ``experts_per_token`` of the experts, spread evenly."""
    experts, fan_out, fan_in = parameter.shape
    rows = tokens * mlp.experts_per_token
    each = max(1, rows // experts)
    # groups that fill whole tiles share the GPU as one tall matrix would; smaller ones are bound by their weights
    height = rows if each >= GROUP_ROWS else each
    share = value("matmul_shape", "grouped")  # of a dense multiplication's rate
    for work in _linear(height, fan_in, fan_out, trained=trained, count=rows / height, bits=bits):
        yield replace(work, slowed=1.0 / share) if work.resource is Resource.MATMUL else work
    yield from _launches(1, 2 if trained else 1)


def _dequantisation(parameter: Parameter) -> Iterator[Work]:
    """The weight is expanded to 16 bits in front of each multiplication: once forward, once backward."""
    cost = Elementwise(DEQUANTISE_BYTES, DEQUANTISE_BYTES, 1, 1)
    yield from _elementwise(cost, parameter.numel, name=DEQUANTISATION)


def _adapters(block: Block, tokens: int, computation: Computation) -> Iterator[Work]:
    """LoRA: x A B beside each adapted weight, both trained."""
    if computation.adapters is None:
        return
    rank = computation.adapters.rank
    for weight in computation.adapters.adapted(block):
        yield from _linear(tokens, weight.fan_in, rank, trained=True)
        yield from _linear(tokens, rank, weight.fan_out, trained=True)
        yield from _launches(2, 4)
        yield from _elementwise(fused(Operation.ADAPTER, ADAPTER, computation), tokens * weight.fan_out)
        if computation.adapters.dropout:
            yield from _elementwise(DROPOUT, tokens * weight.fan_in)


def attended_keys(seq_len: int, window: int = 0) -> float:
    """Keys a query meets on average under a causal mask, with or without a sliding window.

    Formula: (s + 1) / 2; with a window w < s the first w queries see (w + 1) / 2, the others w.

    >>> attended_keys(4), attended_keys(4, window=2)  # (1 + 2 + 3 + 4) / 4 and (1 + 2 + 2 + 2) / 4
    (2.5, 1.75)
    """
    if not window or window >= seq_len:
        return (seq_len + 1) / 2
    return window - window * (window - 1) / (2 * seq_len)


def _value_dim(attention: Attention) -> int:
    return attention.value_dim or attention.head_dim


def _flash(attention: Attention, tokens: int, seq_len: int) -> Iterator[Work]:
    """One kernel: 2 T keys a (d_qk + d_v) FLOPs forward; ``shape`` is (queries, most keys, head size).

    ``seq_len`` is the whole sequence's, of which context parallelism leaves a rank ``tokens`` queries.
    """
    pairs = 2.0 * tokens * attended_keys(seq_len, attention.window) * attention.heads
    qk, v = attention.head_dim, _value_dim(attention)
    shape = (seq_len, min(seq_len, attention.window or seq_len), qk)
    for when, flops in (
        (When.FORWARD, pairs * (qk + v)),
        (When.BACKWARD, pairs * (FLASH_BACKWARD_QK * qk + FLASH_BACKWARD_V * v)),
    ):
        yield Work(name=ATTENTION, resource=Resource.ATTENTION, amount=flops, when=when, shape=shape)
    yield from _launches(1, 1)


def _eager(attention: Attention, tokens: int, seq_len: int, computation: Computation) -> Iterator[Work]:
    """Materialised scores: two batched multiplications over the full square and the softmax's passes over it."""
    rows = tokens * attention.heads  # batched: the tiles of all heads share the GPU, as those of one tall matrix would
    for inner, outer in ((attention.head_dim, seq_len), (seq_len, _value_dim(attention))):
        yield _matmul(ATTENTION, (rows, outer, inner), When.FORWARD)
        yield _matmul(ATTENTION, (rows, inner, outer), When.BACKWARD)
        yield _matmul(ATTENTION, (rows, min(inner, outer), max(inner, outer)), When.BACKWARD)
    scores = float(tokens) * seq_len * attention.heads
    yield from _launches(2, 4)
    yield from _elementwise(fused(Operation.SCORES, EAGER_SCORES, computation), scores, name=ATTENTION)
    if attention.soft_cap:
        yield from _elementwise(fused(Operation.SOFT_CAP, SOFT_CAP, computation), scores, name=ATTENTION)


def _attention(
    attention: Attention, hidden: int, tokens: int, seq_len: int, computation: Computation
) -> Iterator[Work]:
    """Mixing of tokens, the rotary embedding, and the sums of gradients at the shared input."""
    keys = seq_len * computation.kernels.context_shards
    if computation.attention is AttentionImplementation.EAGER:
        yield from _eager(attention, tokens, keys, computation)
    else:
        yield from _flash(attention, tokens, keys)
    rotated_keys = attention.kv_heads if attention.kind is AttentionKind.SOFTMAX else 1  # MLA rotates one shared key
    if attention.rope_dim:
        elements = tokens * attention.rope_dim * (attention.heads + rotated_keys)
        yield from _elementwise(fused(Operation.ROTARY, ROTARY, computation), elements, kernels=2)
    if not attention.fused_qkv:
        yield from _elementwise(FAN_OUT, 2 * tokens * hidden, kernels=2)


def _mlp(mlp: Mlp, hidden: int, tokens: int, computation: Computation) -> Iterator[Work]:
    """Activations of the feed-forward part; its weights are listed with the others."""
    rows = tokens * mlp.experts_per_token // computation.kernels.sequence_shards if mlp.experts else tokens
    elements = rows * mlp.intermediate + tokens * mlp.shared_intermediate
    yield from _elementwise(_activation(mlp, computation), elements)
    if mlp.kind is MlpKind.GATED:
        yield from _elementwise(fused(Operation.FAN_OUT, FAN_OUT, computation), tokens * hidden)
    if mlp.experts:
        yield from _elementwise(fused(Operation.ROUTING, ROUTING, computation), rows * hidden)
    if mlp.experts and computation.kernels.fused:
        yield from _launches(value("launch", "mixture_forward"), value("launch", "mixture_backward"))


def _activation(mlp: Mlp, computation: Computation) -> Elementwise:
    """The activation, and its product with the other half of a gated pair."""
    eager = ACTIVATIONS.get(mlp.activation)
    activation = fused(Operation.ACTIVATION, eager, computation) if eager else FUSED_ACTIVATION
    if mlp.kind is not MlpKind.GATED:
        return activation
    pair = activation + GATE_PRODUCT
    eager_experts = mlp.experts and not computation.kernels.fused  # Liger and compilers leave experts alone
    return pair if eager_experts else fused(Operation.GATE, pair, computation)


def _state_space(ssm: StateSpace, tokens: int) -> Iterator[Work]:
    """Selective scan, bound by memory."""
    yield from _elementwise(STATE_SCAN, float(tokens) * ssm.inner * ssm.state)


def _norm(style: NormStyle, computation: Computation) -> Elementwise:
    """A layer norm is one kernel already, and as cheap as the fused others."""
    eager = NORMS[style]
    return eager if style is NormStyle.LAYER else fused(Operation.NORM, eager, computation)


def _frame(block: Block, hidden: int, whole_tokens: int, computation: Computation) -> Iterator[Work]:
    """Norms over the hidden size, residual sums and dropouts of one layer; sequence parallelism cuts them."""
    norm, tokens = _norm(block.norm, computation), whole_tokens // computation.kernels.sequence_shards
    yield from _elementwise(norm, block.norms * tokens * hidden, kernels=block.norms)
    yield from _elementwise(RESIDUAL, 2 * tokens * hidden, kernels=2)
    if block.hidden_dropout:
        yield from _elementwise(DROPOUT, 2 * tokens * hidden, kernels=2)
    attention = block.attention
    if attention is not None and attention.qk_norm:
        width = (attention.heads + attention.kv_heads) * attention.head_dim
        yield from _elementwise(norm, whole_tokens * width, kernels=2)


def _layer_work(block: Block, hidden: int, computation: Computation, seq_len: int, tokens: int) -> Iterator[Work]:
    """All work of one layer, forward and backward."""
    for parameter in block.parameters:
        yield from _weight(parameter, block, tokens, computation)
    yield from _adapters(block, tokens, computation)
    yield from _frame(block, hidden, tokens, computation)
    if block.attention is not None:
        yield from _attention(block.attention, hidden, tokens, seq_len, computation)
    if block.mlp is not None:
        yield from _mlp(block.mlp, hidden, tokens, computation)
    if block.ssm is not None:
        yield from _state_space(block.ssm, tokens)
        if block.mlp is None:
            yield from _fused_mixer(block, tokens, frozen=computation.adapters is not None)


def _fused_mixer(block: Block, tokens: int, *, frozen: bool) -> Iterator[Work]:
    """Mamba-1's one function computes the step size again, and its weights' gradients whether they are trained or not.

    Source:
        state-spaces/mamba mamba_ssm/ops/selective_scan_interface.py ``MambaInnerFn.backward``, read and not run.
    """
    for weight in block.parameters:
        name = weight.name.split(".")[-2] if weight.kind is ParameterKind.LINEAR else ""
        if name == "dt_proj":
            yield _matmul(MATMULS, (tokens, weight.fan_out, weight.fan_in), When.BACKWARD)
        if frozen and name in ("x_proj", "dt_proj", "out_proj"):
            yield _matmul(WEIGHT_GRADIENTS, (weight.fan_out, weight.fan_in, tokens), When.BACKWARD)


def _head_work(model: Model, computation: Computation, tokens: int) -> Iterator[Work]:
    """Embedding, final norm, lm_head (tied or not) and the loss; a pipeline's stages have what is theirs of these."""
    full, last = computation.adapters is None, bool(model.head) or model.tied
    if last:
        yield from _loss_work(model, computation, tokens, trained=full)
    for parameter in (*model.embedding, *model.head):
        if parameter.kind is ParameterKind.LINEAR and not _is_lm_head(parameter):
            yield from _linear(tokens, parameter.fan_in, parameter.fan_out, trained=full)
            yield from _launches(1, 2)
    if last:
        rows = tokens // computation.kernels.sequence_shards
        yield from _elementwise(_norm(model.final_norm, computation), rows * model.hidden)
    if model.embedding:
        yield from _elementwise(EMBEDDING, tokens * model.hidden)
    if full and model.embedding:
        table = Elementwise(0, 2, 0, 1)  # the embedding's gradient is written densely
        yield from _elementwise(table, model.vocab * model.hidden)


def _is_lm_head(parameter: Parameter) -> bool:
    return module_name(parameter) == "lm_head"


def _loss_work(model: Model, computation: Computation, tokens: int, *, trained: bool) -> Iterator[Work]:
    """lm_head and cross-entropy. A chunked loss makes their gradients chunk by chunk in the forward pass."""
    tables = (p.shape[-1] for p in model.embedding if p.kind is ParameterKind.EMBEDDING)  # OPT-350M: not h
    width = next(tables, model.hidden)  # a pipeline's last stage has none
    rows = min(computation.loss_chunk or tokens, tokens)
    calls = tokens / rows
    works = (
        *_linear(rows, width, model.vocab, trained=trained, count=calls),
        *_launches(2 * calls, (4 if trained else 2) * calls),
        *_elementwise(
            fused(Operation.LOSS, CROSS_ENTROPY, computation), float(tokens) * model.vocab, name=LOSS, kernels=calls
        ),
    )
    for work in works:
        yield replace(work, when=When.FORWARD) if computation.loss_chunk else work


def _merged(parts: Iterable[tuple[Iterable[Work], float]]) -> tuple[Work, ...]:
    """Add up work of one name, resource, part and shape; each part is (work, how often)."""
    totals: dict[tuple[object, ...], float] = {}
    first: dict[tuple[object, ...], Work] = {}
    for works, times in parts:
        for work in works:
            key = (work.name, work.resource, work.when, work.shape, work.bits, work.slowed)
            totals[key] = totals.get(key, 0.0) + work.amount * times
            first.setdefault(key, work)
    return tuple(
        Work(
            name=work.name,
            resource=work.resource,
            amount=totals[key],
            when=work.when,
            shape=work.shape,
            bits=work.bits,
            slowed=work.slowed,
        )
        for key, work in first.items()
        if totals[key]
    )


def _last_projection(block: Block, tokens: int, computation: Computation) -> Iterator[Work]:
    """The multiplication a recomputation need not repeat: nothing after it is saved for the backward pass.

    Non-reentrant checkpointing stops once every saved tensor is back, and a projection saves its input only. A dropout,
    a norm or a mixture of experts behind the last projection saves more and forces it to run. An adapter of that
    projection saves its inner values, so that only its second factor is left out.

    Source:
        torch 2.13.0 utils/checkpoint.py, ``set_checkpoint_early_stop`` (default on); seen with FlopCounterMode on
        Llama (0.75 of a layer's forward, down_proj being 0.25 of it), GPT-2 and OPT (1.00), DeepSeek (shared experts
        come last).
    """
    mlp = block.mlp
    if mlp is None or block.hidden_dropout or block.post_norm or block.norms > 2:
        return
    width = mlp.shared_intermediate if mlp.experts else mlp.intermediate
    last = next((p for p in reversed(block.parameters) if _ends_layer(p, width, mlp)), None)
    if last is None:
        return
    adapters = computation.adapters
    adapted = adapters is not None and last in adapters.adapted(block)
    inner = adapters.rank if adapters is not None and adapted else last.fan_in
    yield _matmul(MATMULS, (tokens, last.fan_out, inner), When.FORWARD, bits=computation.kernels.matmul_bits)


def _ends_layer(parameter: Parameter, width: int, mlp: Mlp) -> bool:
    """A projection from the MLP's width; of a mixture, that of shared experts without a gate of their own."""
    closes = parameter.kind is ParameterKind.LINEAR and parameter.fan_in == width
    return closes and (not mlp.experts or "shared_experts." in parameter.name)


def _chosen(model: Model, computation: Computation) -> Computation:
    """With the attention that the model leaves a choice of; a framework's own kernels know sinks and soft caps."""
    if computation.kernels.fused:
        return computation
    return replace(computation, attention=effective_attention(model, computation.attention))


@lru_cache(maxsize=4096)
def _layers(
    model: Model, computation: Computation, seq_len: int, micro_batch: int
) -> tuple[dict[int, tuple[Work, ...]], dict[int, tuple[Work, ...]], tuple[Work, ...]]:
    """Work of each distinct layer, of its recomputation (both by the block's id), and of the rest of the model."""
    tokens = seq_len * micro_batch
    chosen = _chosen(model, computation)
    whole: dict[int, tuple[Work, ...]] = {}
    again: dict[int, tuple[Work, ...]] = {}
    for block, _ in model.distinct_blocks:
        works = _merged(((_layer_work(block, model.hidden, chosen, seq_len, tokens), 1.0),))
        forward = (w for w in works if w.when is When.FORWARD)
        repeated = _merged(((forward, 1.0), (_last_projection(block, tokens, chosen), -1.0)))
        whole[id(block)] = works
        again[id(block)] = tuple(replace(w, name=RECOMPUTE, when=When.BACKWARD) for w in repeated)
    return whole, again, _merged(((_head_work(model, chosen, tokens), 1.0),))


def _without_gradient(block: Block, computation: Computation, tokens: int, seq_len: int) -> Iterator[Work]:
    """Multiplications and attention that the first layer with adapters leaves out of its backward pass.

    Its memory-bound kernels and launches are counted in full: one layer's.
    """
    if computation.adapters is None:
        return
    found = skipped(block, computation.adapters)
    frozen = replace(computation, adapters=Adapters(targets=("",)), quantized=False)
    for parameter in found.weights:
        for work in _weight(parameter, block, tokens, frozen):
            if work.name == INPUT_GRADIENTS:
                yield work
    for weight in computation.adapters.adapted(block):
        if weight in found.weights:
            yield _matmul(INPUT_GRADIENTS, (tokens, weight.fan_in, computation.adapters.rank), When.BACKWARD)
    if block.attention is not None:
        yield from _attention_without_gradient(block.attention, found, tokens, seq_len, computation)


def _attention_without_gradient(
    attention: Attention, found: Skipped, tokens: int, seq_len: int, computation: Computation
) -> Iterator[Work]:
    """Eager scores leave out operand by operand, one kernel leaves out all or nothing."""
    if computation.attention is not AttentionImplementation.EAGER:
        if found.attention:
            yield from (
                w for w in _flash(attention, tokens, seq_len) if _backward(w) and w.resource is Resource.ATTENTION
            )
        return
    no_query, no_key, no_value = found.operands
    rows, width, values = tokens * attention.heads, attention.head_dim, _value_dim(attention)
    operands = (
        (no_query, (rows, width, seq_len)),
        (no_key, (rows, min(width, seq_len), max(width, seq_len))),
        (no_query and no_key, (rows, seq_len, values)),
        (no_value, (rows, min(values, seq_len), max(values, seq_len))),
    )
    yield from (_matmul(ATTENTION, shape, When.BACKWARD) for left, shape in operands if left)


def _backward(work: Work) -> bool:
    return work.when is When.BACKWARD


def _left_out(
    model: Model, computation: Computation, whole: Mapping[int, tuple[Work, ...]], seq_len: int, tokens: int
) -> Iterator[Work]:
    """Backward work in front of the first adapter: all of the layers before it, and what its own layer skips."""
    adapters = computation.adapters
    if adapters is None or not skips(computation):
        return
    for weight in model.embedding:
        if weight.kind is ParameterKind.LINEAR and weight.fan_out == model.hidden:  # OPT-350M: in front of the layers
            yield _matmul(INPUT_GRADIENTS, (tokens, weight.fan_in, weight.fan_out), When.BACKWARD)
    first = first_adapted(model, adapters)
    for block in model.blocks[:first]:
        yield from (work for work in whole[id(block)] if _backward(work))
    if first < model.layers:
        chosen = _chosen(model, computation)
        yield from _without_gradient(model.blocks[first], chosen, tokens, seq_len)


@lru_cache(maxsize=65536)
def compute_work(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> tuple[Work, ...]:
    """Work of ONE micro-step's forward and backward on one rank; linear in the checkpointed layers above none.

    Without any, LoRA skips the input gradients in front of its first adapter; a line through 0 and L is then below.

    Args:
        model: what is trained.
        computation: method, kernels and k, the first k layers being recomputed in the backward pass.
        seq_len: s, tokens of one sequence.
        micro_batch: b, sequences of one micro-step.

    Returns:
        FLOPs, bytes and kernel counts; none is ``once`` or ``side``.
    """
    kept = replace(computation, checkpointed_layers=0, checkpoints_on_host=False)
    whole, again, rest = _layers(model, kept, seq_len, micro_batch)
    checkpointed: dict[int, int] = {}
    for block in model.blocks[: computation.checkpointed_layers]:
        checkpointed[id(block)] = checkpointed.get(id(block), 0) + 1
    parts: list[tuple[Iterable[Work], float]] = [(rest, 1.0)]
    parts += [(whole[id(block)], float(count)) for block, count in model.distinct_blocks]
    parts += [(again[key], float(count)) for key, count in checkpointed.items()]
    parts.append((_left_out(model, computation, whole, seq_len, seq_len * micro_batch), -1.0))
    return _merged(parts)


def _active(block: Block) -> float:
    """Parameters of one layer that one token meets."""
    mlp = block.mlp
    share = mlp.experts_per_token / mlp.experts if mlp is not None and mlp.experts else 1.0
    return sum(p.numel * (share if p.kind is ParameterKind.EXPERTS else 1.0) for p in block.parameters)


@lru_cache(maxsize=1024)
def model_flops_per_token(model: Model, seq_len: int) -> float:
    """FLOPs per token that MFU counts: forward and backward, no recomputation, attention as a full square.

    Formula: 6 N + 12 L a d s (= 6 N + 12 L h s where a d = h), with N all parameters a token meets: embeddings and, of
    a mixture, the experts it is routed to.

    Source:
        Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, appendix B; the same formula prints the MFU of llm-foundry's
        tables (mosaicml/llm-foundry 8c8dd48f, scripts/train/benchmarking/README.md).
    """
    outside = sum(p.numel for p in (*model.embedding, *model.head))
    inside = sum(_active(block) * count for block, count in model.distinct_blocks)
    width = sum(
        b.attention.heads * b.attention.head_dim * n for b, n in model.distinct_blocks if b.attention is not None
    )
    return 6.0 * (outside + inside) + 12.0 * width * seq_len
