"""The parts that layers are made of, as transformers 5.23.0 and peft 0.21.2 write them.

Variables live as long here as there: what a caller still names is not gone. Parts that return two tensors return
attention's result and its weights, which the caller holds as the original does.

Source:
    transformers 5.23.0 models/llama/modeling_llama.py and, where a part differs, the file named at it; peft 0.21.2
    tuners/lora/layer.py ``Linear.forward``, tuners/lora/bnb.py ``Linear4bit.forward``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...computation import Adapters
from ...model import Attention, Block, Mlp, NormStyle, Parameter
from ..attention import EFFICIENT_RANDOM_STATE, FLASH_RANDOM_STATE, Kernel, kernel, masked
from ..kept import FP32, Recipe
from . import operations as op
from .tape import PAIR, TOKEN, Gradients, Layout, Tape, Tensor


@dataclass(slots=True)
class Layer:
    """One layer on a tape."""

    tape: Tape
    block: Block
    recipe: Recipe
    seq_len: int  # decides whether a window needs a mask
    alone: bool  # one sequence: heads and batch merge without a copy
    weights: dict[str, Parameter]  # by the module's path: "self_attn.q_proj"
    adapted: frozenset[Parameter]

    @property
    def attention(self) -> Attention:
        """The layer's attention."""
        assert self.block.attention is not None
        return self.block.attention

    @property
    def mlp(self) -> Mlp:
        """The layer's feed-forward part."""
        assert self.block.mlp is not None
        return self.block.mlp

    @property
    def queries(self) -> int:
        """Features of all queries."""
        return self.attention.heads * self.attention.head_dim

    @property
    def keys(self) -> int:
        """Features of all keys."""
        return self.attention.kv_heads * self.attention.head_dim


def linear(layer: Layer, path: str, x: Tensor) -> Tensor:
    """An nn.Linear, in 4 bits or not, and its adapter: result + scaling B(A(dropout(x)))."""
    t, weight, adapters = layer.tape, layer.weights[path], layer.recipe.adapters
    result = op.linear(t, x, weight.fan_out, trained=layer.recipe.full)
    if adapters is None or weight not in layer.adapted:
        return result
    if layer.recipe.quantized:
        result = op.copy(t, result)
    return op.add(t, result, op.pointwise(t, _adapter(t, x, adapters, weight.fan_out)))


def _adapter(t: Tape, x: Tensor, adapters: Adapters, width: int) -> Tensor:
    """B(A(dropout(x))), nested as in the source: each argument is gone when its call returns."""
    return op.linear(
        t, op.linear(t, op.dropout(t, x, adapters.dropout), adapters.rank, trained=True), width, trained=True
    )


def rms_norm(layer: Layer, x: Tensor, rows: int = 1) -> Tensor:
    """An RMS norm over ``rows`` parts of a token's features: computed in fp32, whatever the training precision."""
    t, full, size = layer.tape, layer.recipe.full, rows * TOKEN
    element = x.element
    if layer.block.norm is NormStyle.RMS:
        x = op.cast(t, x, FP32)
        variance = op.mean_square(t, x, size)
        x = op.scale_rows(t, x, _rsqrt(t, op.shift(t, variance)))
        return op.scale_features(t, op.cast(t, x, element), trained=full)
    return _rms_norm_fp32(layer, x, size)


def _rms_norm_fp32(layer: Layer, x: Tensor, size: int) -> Tensor:
    """The weight is applied in fp32: OLMo-2's and gpt-oss' as it is, Gemma's as 1 + w after the normalised input."""
    t, full, element = layer.tape, layer.recipe.full, x.element
    if layer.block.post_norm or layer.recipe.family == "gpt_oss":
        x = op.cast(t, x, FP32)
        variance = op.mean_square(t, x, size)
        x = op.scale_rows(t, x, _rsqrt(t, op.shift(t, variance)))
        return op.cast(t, op.scale_features(t, x, trained=full), element)
    output = _normalised(t, op.cast(t, x, FP32), size)
    one_plus_weight = t.new(x.numel // TOKEN, FP32)
    output = op.scale_features(t, output, trained=full, weight_first=False, weight=one_plus_weight)
    return op.cast(t, output, element)


def _normalised(t: Tape, x: Tensor, size: int) -> Tensor:
    return op.scale_rows(t, x, _rsqrt(t, op.shift(t, op.mean_square(t, x, size))))


def _rsqrt(t: Tape, x: Tensor) -> Tensor:
    return op.pointwise(t, x, saves_result=True)


def norm(layer: Layer, x: Tensor) -> Tensor:
    """A norm over the hidden size."""
    if layer.block.norm is NormStyle.LAYER:
        return op.layer_norm(layer.tape, x, trained=layer.recipe.full)
    return rms_norm(layer, x)


def heads(layer: Layer, x: Tensor) -> Tensor:
    """view(b, s, a, d).transpose(1, 2)."""
    return op.view(layer.tape, x, Layout.TOKENS)


def rotate_half(t: Tape, x: Tensor, layout: Layout = Layout.HEADS) -> Tensor:
    """cat(-x2, x1)."""
    half = x.numel // TOKEN // 2
    first, second = op.slices(t, x, (half, half), layout)
    return op.concatenate(t, (op.pointwise(t, second), first), layout)


def rotated(layer: Layer, x: Tensor, wide: int = 0) -> Tensor:
    """x cos + rotate_half(x) sin; ``wide``: bytes of the tables' elements where these are fp32 (OLMo-2)."""
    t = layer.tape
    return op.add(t, op.multiply_table(t, x, wide), op.multiply_table(t, rotate_half(t, x), wide))


def rotary(layer: Layer, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """apply_rotary_pos_emb: over whole heads, in fp32 (OLMo-2), or over a part that is joined with the rest again."""
    t, a = layer.tape, layer.attention
    if a.rope_concat or a.rope_dim < a.head_dim:
        return _partly_rotated(layer, query, key)
    wide = FP32 if layer.block.post_norm else 0
    element = query.element
    q = rotated(layer, query, wide)
    k = rotated(layer, key, wide)
    return op.cast(t, q, element), op.cast(t, k, element)


def _partly_rotated(layer: Layer, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    t, a = layer.tape, layer.attention
    rest = a.head_dim - a.rope_dim
    q_turned, q_rest = op.slices(t, query, (a.heads * a.rope_dim, a.heads * rest))
    k_turned, k_rest = op.slices(t, key, (a.kv_heads * a.rope_dim, a.kv_heads * rest))
    q = op.concatenate(t, (rotated(layer, q_turned), q_rest))
    k = op.concatenate(t, (rotated(layer, k_turned), k_rest))
    return q, k


def attend(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """The attention function that transformers or SDPA picks: the result as tokens, and weights where they exist."""
    if is_composed(layer):
        return composed(layer, query, key, value), None
    chosen = kernel(layer.attention, layer.recipe, layer.seq_len)
    if chosen is Kernel.EAGER:
        return eager(layer, query, key, value)
    if chosen is Kernel.FLASH:
        return flash(layer, query, key, value), None
    return efficient(layer, query, key, value), None


def is_composed(layer: Layer) -> bool:
    """CUDA's kernels refuse fewer key-value heads than queries: Falcon's single one, and in fp32 all without a mask."""
    a, recipe = layer.attention, layer.recipe
    if recipe.eager or a.eager_only or a.kv_heads == a.heads:
        return False
    if a.dense_mask:
        return a.kv_heads == 1
    return recipe.element == FP32 and not masked(a, layer.recipe, layer.seq_len)


def flash(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """_scaled_dot_product_flash_attention: its result lies in memory as the queries do."""
    t = layer.tape
    out = _fused(layer, (query, key, value), query.layout, FLASH_RANDOM_STATE)
    return out if out.layout is Layout.TOKENS else op.copy(t, out)


def efficient(layer: Layer, query: Tensor, key: Tensor, value: Tensor, *, spread: bool = True) -> Tensor:
    """_scaled_dot_product_efficient_attention: a mask becomes each layer's own bias; keys of all heads."""
    t, a = layer.tape, layer.attention
    if spread:
        key = repeated(layer, key)
        value = repeated(layer, value)
    own = masked(a, layer.recipe, layer.seq_len) and not a.alibi
    bias = t.new(PAIR, query.element) if own else None
    return _fused(layer, (query, key, value), Layout.TOKENS, EFFICIENT_RANDOM_STATE, bias)


def _fused(
    layer: Layer, inputs: tuple[Tensor, Tensor, Tensor], layout: Layout, state: int, bias: Tensor | None = None
) -> Tensor:
    t, query = layer.tape, inputs[0]
    shapes = tuple((x.numel, x.layout if state == FLASH_RANDOM_STATE else layout) for x in inputs)

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(numel, gradient.element, None, where) for numel, where in shapes]

    saved = (*inputs, bias) if bias is not None else inputs
    node = t.node([x.edge for x in inputs], rule, saved)
    out = t.new(query.numel, query.element, node, layout)
    sums = t.new(layer.attention.heads * TOKEN, FP32) if node is not None else None
    random = t.new(state, 1)
    for result in (out, sums, random):
        if result is not None:
            t.save(node, result)
    return out


def eager(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """eager_attention_forward: scores in the training precision, softmax in fp32; GPT-2's in the training precision."""
    t, a = layer.tape, layer.attention
    key_states = repeated(layer, key)
    value_states = repeated(layer, value)
    weights = op.pointwise(t, scores(layer, query, key_states))
    if a.soft_cap:
        weights = op.pointwise(t, weights)
        weights = op.pointwise(t, weights, saves_result=True)
        weights = op.pointwise(t, weights)
    weights = op.shift(t, weights)
    weights = op.cast(t, op.softmax(t, weights, weights.element if a.softmax_16bit else FP32), query.element)
    weights = op.dropout(t, weights, a.dropout)
    out = weighted(layer, weights, value_states)
    out = op.copy(t, out)
    return out, weights


def scores(layer: Layer, query: Tensor, key: Tensor) -> Tensor:
    """matmul(q, k'): of all pairs."""
    t = layer.tape
    return op.matmul(
        t,
        op.ready_for_bmm(t, query, alone=layer.alone),
        op.ready_for_bmm(t, key, alone=layer.alone),
        op.scores_numel(layer.attention.heads),
    )


def weighted(layer: Layer, weights: Tensor, value: Tensor) -> Tensor:
    """matmul(weights, v)."""
    t = layer.tape
    return op.matmul(t, weights, op.ready_for_bmm(t, value, alone=layer.alone), layer.queries * TOKEN)


def composed(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """_scaled_dot_product_attention_math: all scores, in fp32 whatever the type; its own causal mask.

    Source:
        torch 2.13.0 aten/src/ATen/native/transformers/attention.cpp; grouped heads are copied for all, a single one
        that the caller left alone (Falcon) is broadcast by the products.
    """
    t, a = layer.tape, layer.attention
    grouped = not a.dense_mask
    wide_query, wide_key, wide_value = (op.cast(t, x, FP32) for x in (query, key, value))
    scaled_query = op.pointwise(t, wide_query)
    mask = t.new(PAIR, FP32 if grouped else query.element)
    all_keys, all_values = wide_key, wide_value
    if grouped:
        all_keys = repeated(layer, wide_key, copies=True)
        all_values = repeated(layer, wide_value, copies=True)
    scaled_key = op.pointwise(t, all_keys)
    weights = scores(layer, scaled_query, scaled_key if grouped else repeated(layer, scaled_key))
    weights = op.shift(t, weights)
    weights = op.softmax(t, weights, FP32)
    narrow = op.cast(t, weights, query.element)
    out = op.cast(t, weighted(layer, weights, all_values if grouped else repeated(layer, all_values)), query.element)
    del mask, narrow
    return op.copy(t, out)


def repeated(layer: Layer, x: Tensor, *, copies: bool = False) -> Tensor:
    """Keys or values for all heads."""
    a = layer.attention
    return op.repeat_heads(layer.tape, x, a.heads, a.kv_heads, a.head_dim, copies=copies)


def activated(layer: Layer, x: Tensor) -> Tensor:
    """An activation: one kernel, or GPT-2's composition of eight, or BLOOM's function."""
    t, name = layer.tape, layer.mlp.activation
    if name == "gelu_new":
        return gelu_new(t, x)
    if name == "gelu_bloom":
        return gelu_bloom(t, x)
    return op.pointwise(t, x, saves_input=name != "relu", saves_result=name == "relu")


def gelu_new(t: Tape, x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(c (x + 0.044715 x^3))). Source: transformers activations.py ``NewGELUActivation``."""
    return op.multiply(
        t,
        op.pointwise(t, x),
        op.shift(
            t,
            op.pointwise(t, op.pointwise(t, op.add(t, x, op.pointwise(t, op.power(t, x)))), saves_result=True),
        ),
    )


def gelu_bloom(t: Tape, x: Tensor) -> Tensor:
    """A function that saves its input alone; its two formulas run without a graph, tensor by tensor.

    Source:
        transformers 5.23.0 models/bloom/modeling_bloom.py ``bloom_gelu_forward``, ``bloom_gelu_back``.
    """
    numel, element = x.numel, x.element

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        def new(*_: Tensor) -> Tensor:
            return tape.new(numel, element)

        tanh = new(new(new(), new(new(new()))))
        factor = new(new(new(), new(new(new(tanh)), new(new(new())))), new(new(tanh)))
        return [new(factor)]

    def new(*_: Tensor) -> Tensor:
        return t.new(numel, element)

    node = t.node((x.edge,), rule, (x,))
    result = new(new(), new(new(new(new(), new(new(new()))))))
    result.node = node
    return result
