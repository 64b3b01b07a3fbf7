"""Multi-head latent attention: queries, keys and values are projected up again from narrow latents.

Source:
    transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py ``DeepseekV2Attention``, ``apply_rotary_emb``,
    models/deepseek_v3/modeling_deepseek_v3.py ``DeepseekV3Attention``, ``apply_rotary_pos_emb_interleave``; torch
    2.13.0 torch/csrc/autograd/functions/tensor.cpp ``CopySlices``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..attention import EFFICIENT_RANDOM_STATE
from ..kept import FP32
from . import operations as op
from .modules import Layer, heads, linear, rms_norm, scores
from .tape import TOKEN, Edge, Gradients, Layout, Tape, Tensor


def latent_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Queries and keys have a rotated part of their own; all heads share the keys'."""
    t, a = layer.tape, layer.attention
    rest = a.head_dim - a.rope_dim
    query = _queries(layer, x)
    query = heads(layer, query)
    q_rest, q_turned = op.split(t, query, (a.heads * rest, a.heads * a.rope_dim), Layout.HEADS)
    compressed = linear(layer, "self_attn.kv_a_proj_with_mqa", x)
    latent, k_turned = op.split(t, compressed, (a.kv_lora_rank, a.rope_dim))
    latent_normed = rms_norm(layer, latent)
    rotate = _rotated_pairs if layer.recipe.family == "deepseek_v2" else _rotated_halves
    q_turned, k_turned = rotate(t, q_turned), rotate(t, k_turned)
    states = op.concatenate(t, (q_rest, q_turned))
    key, value = _expanded(layer, latent_normed, k_turned)
    result, weights = _attend(layer, states, key, value)
    return linear(layer, "self_attn.o_proj", result), weights


def _queries(layer: Layer, x: Tensor) -> Tensor:
    if not layer.attention.q_lora_rank:
        return linear(layer, "self_attn.q_proj", x)
    return linear(layer, "self_attn.q_b_proj", rms_norm(layer, linear(layer, "self_attn.q_a_proj", x)))


def _rotated_pairs(t: Tape, x: Tensor) -> Tensor:
    """V2: as complex numbers, in fp32."""
    return op.cast(t, op.multiply_table(t, op.cast(t, x, FP32)), x.element)


def _rotated_halves(t: Tape, x: Tensor) -> Tensor:
    """V3: even and odd elements, each times cosine and sine."""
    half = x.numel // TOKEN // 2
    even, odd = op.slices(t, x, (half, half))
    first = op.add(t, op.multiply_table(t, even), op.multiply_table(t, odd))
    second = op.add(t, op.multiply_table(t, odd), op.multiply_table(t, even))
    return op.concatenate(t, (first, second))


def _expanded(layer: Layer, latent: Tensor, k_turned: Tensor) -> tuple[Tensor, Tensor]:
    """Keys are written into a new tensor in two parts."""
    t, a = layer.tape, layer.attention
    rest = a.head_dim - a.rope_dim
    up = heads(layer, linear(layer, "self_attn.kv_b_proj", latent))
    k_rest, value = op.split(t, up, (a.heads * rest, a.heads * a.value_dim), Layout.HEADS)
    key = t.new(layer.queries * TOKEN, up.element, None, Layout.HEADS)
    key = _written(t, key, k_rest)
    return _written(t, key, _seen_by_all(t, k_turned, a.heads)), value


def _seen_by_all(t: Tape, x: Tensor, count: int) -> Tensor:
    """expand: a view, whose gradients are summed."""
    small = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(small, gradient.element)]

    return Tensor(x.storage, x.numel * count, x.element, t.node((x.edge,), rule))


def _written(t: Tape, into: Tensor, part: Tensor) -> Tensor:
    """into[...] = part: the whole gradient is copied, then the part's, and zeros take its place."""
    whole, width = into.numel, part.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        rest = tape.new(whole, gradient.element, None, Layout.HEADS)
        own = tape.new(width, gradient.element, None, Layout.HEADS)
        zeros = tape.new(width, gradient.element)
        del zeros
        return [rest, own]

    edges: tuple[Edge, Edge] = (into.edge, part.edge)
    return Tensor(into.storage, into.numel, into.element, t.node(edges, rule), 0, into.layout)


def _attend(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values are narrower than keys: never the flash kernel."""
    if layer.recipe.eager:
        return _eager(layer, query, key, value)
    return _efficient(layer, (query, key, value)), None


def _efficient(layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    t = layer.tape
    shapes = tuple(x.numel for x in inputs)

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(numel, gradient.element) for numel in shapes]

    node = t.node([x.edge for x in inputs], rule, inputs)
    out = t.new(inputs[2].numel, inputs[2].element, node)
    sums = t.new(layer.attention.heads * TOKEN, FP32) if node is not None else None
    random = t.new(EFFICIENT_RANDOM_STATE, 1)
    for result in (out, sums, random):
        if result is not None:
            t.save(node, result)
    return out


def _eager(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    t, a = layer.tape, layer.attention
    weights = op.pointwise(t, scores(layer, query, key))
    weights = op.shift(t, weights)
    weights = op.cast(t, op.softmax(t, weights, FP32), query.element)
    weights = op.dropout(t, weights, a.dropout)
    out = op.matmul(t, weights, op.ready_for_bmm(t, value, alone=layer.alone), a.heads * a.value_dim * TOKEN)
    out = op.copy(t, out)
    return out, weights
