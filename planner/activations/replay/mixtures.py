"""One decoder layer of each family of mixtures, as its modeling file writes it.

Source:
    transformers 5.23.0 models/mixtral, qwen2_moe, qwen3_moe, deepseek_v2, deepseek_v3, gpt_oss: modeling_*.py, the
    classes ``*DecoderLayer``, ``*SparseMoeBlock``, ``*MoE``, ``*TopKRouter``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..kept import FP32, INT64
from . import operations as op
from .decoders import Decoder, Output, gated_mlp, separate_attention
from .experts import experts, normalised, topk
from .latent import latent_attention
from .modules import Layer, activated, heads, linear, norm, scores, weighted
from .tape import PAIR, TOKEN, Gradients, Layout, Tape, Tensor


class Routed(NamedTuple):
    """What a router returns and its caller holds."""

    logits: Tensor
    weights: Tensor
    chosen: Tensor


def llama_with_experts(layer: Layer, hidden: Tensor) -> Output:
    """Mixtral, Qwen2-MoE, Qwen3-MoE: Llama's layer with a mixture in the place of its MLP."""
    return _around(layer, hidden, separate_attention(layer, norm(layer, hidden)))


def deepseek(layer: Layer, hidden: Tensor) -> Output:
    """DeepSeek V2 and V3: latent attention; the first layers are dense."""
    return _around(layer, hidden, latent_attention(layer, norm(layer, hidden)))


def gpt_oss(layer: Layer, hidden: Tensor) -> Output:
    """gpt-oss: eager attention with sinks, experts with biases."""
    return _around(layer, hidden, _oss_attention(layer, norm(layer, hidden)))


def _around(layer: Layer, residual: Tensor, attended: Output) -> Output:
    """Residuals, the second norm and the MLP around attention's result, whose weights are held to the end."""
    t = layer.tape
    hidden, _held = attended
    del attended
    hidden = op.add(t, residual, hidden)
    residual = hidden
    hidden = norm(layer, hidden)
    hidden = _fed(layer, hidden)
    return op.add(t, residual, hidden), None


def _fed(layer: Layer, x: Tensor) -> Tensor:
    if not layer.mlp.experts:
        return gated_mlp(layer, x)
    return FEED_FORWARDS[layer.recipe.family](layer, x)


def _mixtral(layer: Layer, x: Tensor) -> Tensor:
    routed = _softmax_router(layer, x)
    return experts(layer, x, routed.weights)


def _qwen3(layer: Layer, x: Tensor) -> Tensor:
    """Routing weights in the training precision."""
    routed = _softmax_router(layer, x, narrow=True)
    return experts(layer, x, routed.weights)


def _qwen2(layer: Layer, x: Tensor) -> Tensor:
    """A shared expert first, scaled by its own gate at the end."""
    t = layer.tape
    shared = _shared(layer, "mlp.shared_expert", x)
    router = _softmax_router(layer, x, narrow=True)
    routed = experts(layer, x, router.weights)
    gate = op.pointwise(t, linear(layer, "mlp.shared_expert_gate", x), saves_result=True)
    shared = op.scale_rows(t, shared, gate)
    del gate
    return op.add(t, routed, shared)


def _deepseek(layer: Layer, x: Tensor) -> Tensor:
    """Shared experts last."""
    router = _wide_router(layer, x)
    routed = experts(layer, x, router.weights)
    return op.add(layer.tape, routed, _shared(layer, "mlp.shared_experts", x))


def _oss(layer: Layer, x: Tensor) -> Tensor:
    """The softmax is over the chosen experts alone."""
    t, mlp = layer.tape, layer.mlp
    logits = op.linear(t, x, mlp.experts, trained=layer.recipe.full)
    values, chosen = topk(t, logits, mlp.experts_per_token)
    router = Routed(logits, op.softmax(t, values, x.element), chosen)
    del logits, values, chosen
    return experts(layer, x, router.weights)


def _softmax_router(layer: Layer, x: Tensor, *, narrow: bool = False) -> Routed:
    """Softmax in fp32, the largest k, renormalised: an upper bound by 4 + 4 k bytes a token where they are not."""
    t, mlp = layer.tape, layer.mlp
    logits = op.linear(t, x, mlp.experts, trained=layer.recipe.full)
    values, chosen = topk(t, op.softmax(t, logits, FP32), mlp.experts_per_token)
    weights = normalised(t, values)
    del values
    return Routed(logits, op.cast(t, weights, x.element) if narrow else weights, chosen)


def _wide_router(layer: Layer, x: Tensor) -> Routed:
    """DeepSeek's, in fp32 from its input on; choosing by groups leaves nothing behind."""
    t, mlp, hidden = layer.tape, layer.mlp, layer.recipe.hidden
    logits = op.linear(t, op.cast(t, x, FP32), mlp.experts, trained=layer.recipe.full)
    if x.element < FP32:
        t.save(logits.node, t.new(mlp.experts * hidden, FP32))  # the weight's copy
    values, chosen = topk(t, op.pointwise(t, logits, saves_result=True), mlp.experts_per_token)
    return Routed(logits, op.pointwise(t, normalised(t, values)), chosen)


def _shared(layer: Layer, path: str, x: Tensor) -> Tensor:
    """down(act(gate(x)) * up(x)) of the experts that every token passes."""
    return linear(
        layer,
        f"{path}.down_proj",
        op.multiply(
            layer.tape, activated(layer, linear(layer, f"{path}.gate_proj", x)), linear(layer, f"{path}.up_proj", x)
        ),
    )


def _oss_attention(layer: Layer, x: Tensor) -> Output:
    query = heads(layer, linear(layer, "self_attn.q_proj", x))
    key = heads(layer, linear(layer, "self_attn.k_proj", x))
    value = heads(layer, linear(layer, "self_attn.v_proj", x))
    query, key = _turned(layer, query), _turned(layer, key)
    result, weights = _with_sinks(layer, query, key, value)
    return linear(layer, "self_attn.o_proj", result), weights


def _turned(layer: Layer, x: Tensor) -> Tensor:
    """first cos - second sin, second cos + first sin."""
    t, half = layer.tape, x.numel // TOKEN // 2
    first, second = op.split(t, x, (half, half), Layout.HEADS)
    turned = op.add(t, op.multiply_table(t, first), op.multiply_table(t, second))
    other = op.add(t, op.multiply_table(t, second), op.multiply_table(t, first))
    return op.concatenate(t, (turned, other))


def _with_sinks(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Output:
    """One more column of scores, and the index of each row's maximum; all in the training precision."""
    t, a = layer.tape, layer.attention
    key_states = op.repeat_heads(t, key, a.heads, a.kv_heads, a.head_dim)
    value_states = op.repeat_heads(t, value, a.heads, a.kv_heads, a.head_dim)
    weights = op.pointwise(t, scores(layer, query, key_states))
    weights = op.shift(t, weights)
    wide = a.heads * (PAIR + TOKEN)
    combined = _widened(layer, weights, wide)
    combined = _below_maximum(layer, combined)
    probabilities = op.softmax(t, combined, combined.element)
    weights = _without_sink(layer, probabilities)
    out = weighted(layer, weights, value_states)
    out = op.copy(t, out)
    return out, weights


def _widened(layer: Layer, x: Tensor, numel: int) -> Tensor:
    """cat with the sinks: the gradient's first part is a view."""

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [Tensor(gradient.storage, x_numel, gradient.element, None, 0, gradient.layout)]

    x_numel = x.numel
    return layer.tape.new(numel, x.element, layer.tape.node((x.edge,), rule), Layout.HEADS)


def _below_maximum(layer: Layer, x: Tensor) -> Tensor:
    """x - x.max(-1): the maximum's gradient is a negated copy, summed; then it is put into zeros and added."""
    t, rows = layer.tape, layer.attention.heads * TOKEN

    def put(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(wide, gradient.element, None, Layout.HEADS)]

    def subtract(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        negated = op.like(tape, gradient)
        return [gradient, tape.new(rows, negated.element)]

    wide = x.numel
    node = t.node((x.edge,), put)
    largest, places = t.new(rows, x.element, node), t.new(rows, INT64)
    t.save(node, places)
    del places
    return t.new(wide, x.element, t.node((x.edge, largest.edge), subtract), Layout.HEADS)


def _without_sink(layer: Layer, x: Tensor) -> Tensor:
    """x[..., :-1]: a view; its gradient is put into zeros."""
    wide, width = x.numel, layer.attention.heads * PAIR

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(wide, gradient.element, None, Layout.HEADS)]

    return Tensor(x.storage, width, x.element, layer.tape.node((x.edge,), rule), 0, Layout.HEADS)


FEED_FORWARDS = {
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2,
    "qwen3_moe": _qwen3,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "gpt_oss": _oss,
}
MIXTURES: dict[str, Decoder] = {
    "mixtral": llama_with_experts,
    "qwen2_moe": llama_with_experts,
    "qwen3_moe": llama_with_experts,
    "deepseek_v2": deepseek,
    "deepseek_v3": deepseek,
    "gpt_oss": gpt_oss,
}
