"""One decoder layer of each dense family, as its modeling file writes it.

Each takes the layer's input and returns its output and what the caller holds besides until the next layer returns:
the attention's weights, where a layer hands them out.

Source:
    transformers 5.23.0 models/*/modeling_*.py, the class ``*DecoderLayer``, ``*Block`` or ``*Layer`` of each family.
"""

from __future__ import annotations

from collections.abc import Callable

from ..kept import FP32, INT64
from . import operations as op
from .modules import (
    Layer,
    activated,
    attend,
    composed,
    efficient,
    heads,
    is_composed,
    linear,
    norm,
    repeated,
    rms_norm,
    rotary,
    rotate_half,
    rotated,
    scores,
    weighted,
)
from .tape import TOKEN, Layout, Tensor

Output = tuple[Tensor, Tensor | None]
Decoder = Callable[[Layer, Tensor], Output]


def gated_mlp(layer: Layer, x: Tensor) -> Tensor:
    """down(act(gate(x)) * up(x))."""
    return linear(
        layer,
        "mlp.down_proj",
        op.multiply(layer.tape, activated(layer, linear(layer, "mlp.gate_proj", x)), linear(layer, "mlp.up_proj", x)),
    )


def plain_mlp(layer: Layer, up: str, down: str, x: Tensor) -> Tensor:
    """down(act(up(x))), each step bound to the same name."""
    x = linear(layer, up, x)
    x = activated(layer, x)
    return linear(layer, down, x)


def separate_attention(layer: Layer, x: Tensor, out: str = "self_attn.o_proj") -> tuple[Tensor, Tensor | None]:
    """q, k and v of their own projections; norms of q and k before or behind the split into heads are alike."""
    query = _projected(layer, "q", x)
    key = _projected(layer, "k", x)
    value = heads(layer, linear(layer, "self_attn.v_proj", x))
    query, key = rotary(layer, query, key)
    result, weights = attend(layer, query, key, value)
    return linear(layer, out, result), weights


def _projected(layer: Layer, which: str, x: Tensor) -> Tensor:
    projected = linear(layer, f"self_attn.{which}_proj", x)
    if not layer.attention.qk_norm:
        return heads(layer, projected)
    count = layer.attention.heads if which == "q" else layer.attention.kv_heads
    if layer.block.post_norm:  # OLMo-2: over all heads at once
        return heads(layer, rms_norm(layer, projected))
    return rms_norm(layer, heads(layer, projected), count)


def llama(layer: Layer, hidden: Tensor) -> Output:
    """Llama, Mistral, Qwen2, Qwen3, Gemma: norm, attention, norm, gated MLP."""
    t, residual = layer.tape, hidden
    hidden = norm(layer, hidden)
    hidden, _held = separate_attention(layer, hidden)
    hidden = op.add(t, residual, hidden)
    residual = hidden
    hidden = norm(layer, hidden)
    hidden = gated_mlp(layer, hidden)
    return op.add(t, residual, hidden), None


def gemma2(layer: Layer, hidden: Tensor) -> Output:
    """Gemma-2 and -3: a norm before and behind attention and MLP."""
    t, residual = layer.tape, hidden
    hidden = norm(layer, hidden)
    hidden, _held = separate_attention(layer, hidden)
    hidden = norm(layer, hidden)
    hidden = op.add(t, residual, hidden)
    residual = hidden
    hidden = norm(layer, hidden)
    hidden = gated_mlp(layer, hidden)
    hidden = norm(layer, hidden)
    return op.add(t, residual, hidden), None


def olmo2(layer: Layer, hidden: Tensor) -> Output:
    """OLMo-2: norms behind the sub-layers only."""
    t, residual = layer.tape, hidden
    hidden, _held = separate_attention(layer, hidden)
    hidden = norm(layer, hidden)
    hidden = op.add(t, residual, hidden)
    residual = hidden
    hidden = gated_mlp(layer, hidden)
    hidden = norm(layer, hidden)
    return op.add(t, residual, hidden), None


def phi3(layer: Layer, hidden: Tensor) -> Output:
    """Phi-3: one projection for q, k and v, one for gate and up."""
    t, residual, dropped = layer.tape, hidden, layer.block.hidden_dropout
    hidden = norm(layer, hidden)
    hidden, _held = _phi3_attention(layer, hidden)
    hidden = op.add(t, residual, op.dropout(t, hidden, dropped))
    residual = hidden
    hidden = norm(layer, hidden)
    hidden = _phi3_mlp(layer, hidden)
    return op.add(t, residual, op.dropout(t, hidden, dropped)), None


def _phi3_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    t = layer.tape
    fused = linear(layer, "self_attn.qkv_proj", x)
    query, key, value = op.slices(t, fused, (layer.queries, layer.keys, layer.keys), Layout.TOKENS)
    query, key, value = heads(layer, query), heads(layer, key), heads(layer, value)
    query, key = rotary(layer, query, key)
    result, weights = attend(layer, query, key, value)
    return linear(layer, "self_attn.o_proj", result), weights


def _phi3_mlp(layer: Layer, x: Tensor) -> Tensor:
    t, width = layer.tape, layer.mlp.intermediate
    up = linear(layer, "mlp.gate_up_proj", x)
    gate, up = op.split(t, up, (width, width))
    up = op.multiply(t, up, activated(layer, gate))
    return linear(layer, "mlp.down_proj", up)


def starcoder2(layer: Layer, hidden: Tensor) -> Output:
    """StarCoder2: layer norms and a plain MLP."""
    t, residual, dropped = layer.tape, hidden, layer.block.hidden_dropout
    hidden = norm(layer, hidden)
    hidden, _held = separate_attention(layer, hidden)
    hidden = op.dropout(t, hidden, dropped)
    hidden = op.add(t, residual, hidden)
    residual = hidden
    hidden = norm(layer, hidden)
    hidden = op.dropout(t, plain_mlp(layer, "mlp.c_fc", "mlp.c_proj", hidden), dropped)
    return op.add(t, residual, hidden), None


def phi(layer: Layer, hidden: Tensor) -> Output:
    """Phi-1 and -2: attention and MLP side by side."""
    t, residual, dropped = layer.tape, hidden, layer.block.hidden_dropout
    hidden = norm(layer, hidden)
    attended, _held = _phi_attention(layer, hidden)
    attended = op.dropout(t, attended, dropped)
    fed = op.dropout(t, plain_mlp(layer, "mlp.fc1", "mlp.fc2", hidden), dropped)
    return op.add(t, op.add(t, attended, fed), residual), None


def _phi_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The rotated parts and the projections they were cut from stay named."""
    t, a = layer.tape, layer.attention
    query = _projected(layer, "q", x)
    key = _projected(layer, "k", x)
    value = heads(layer, linear(layer, "self_attn.v_proj", x))
    rest = a.head_dim - a.rope_dim
    q_turned, q_rest = op.slices(t, query, (a.heads * a.rope_dim, a.heads * rest))
    k_turned, k_rest = op.slices(t, key, (a.kv_heads * a.rope_dim, a.kv_heads * rest))
    q_turned, k_turned = rotated(layer, q_turned), rotated(layer, k_turned)
    query = op.concatenate(t, (q_turned, q_rest))
    key = op.concatenate(t, (k_turned, k_rest))
    result, weights = attend(layer, query, key, value)
    return linear(layer, "self_attn.dense", result), weights


def gpt2(layer: Layer, hidden: Tensor) -> Output:
    """GPT-2: one projection for q, k and v; dropout of scores and of what is added to the residual."""
    t, residual, dropped = layer.tape, hidden, layer.block.hidden_dropout
    hidden = norm(layer, hidden)
    attended, _held = _gpt2_attention(layer, hidden)
    attended = op.dropout(t, attended, dropped)
    hidden = op.add(t, attended, residual)
    residual = hidden
    hidden = norm(layer, hidden)
    fed = op.dropout(t, plain_mlp(layer, "mlp.c_fc", "mlp.c_proj", hidden), dropped)
    return op.add(t, residual, fed), None


def _gpt2_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    t, width = layer.tape, layer.queries
    query, key, value = op.split(t, linear(layer, "attn.c_attn", x), (width, width, width))
    key, value, query = heads(layer, key), heads(layer, value), heads(layer, query)
    result, weights = attend(layer, query, key, value)
    return linear(layer, "attn.c_proj", result), weights


def gpt_neox(layer: Layer, hidden: Tensor) -> Output:
    """GPT-NeoX, Pythia: fused heads; two norms of one input, or one after the other."""
    t, dropped = layer.tape, layer.block.hidden_dropout
    attended, _held = _neox_attention(layer, norm(layer, hidden))
    attended = op.dropout(t, attended, dropped)
    if layer.block.parallel_residual:
        fed = _neox_mlp(layer, norm(layer, hidden))
        fed = op.dropout(t, fed, dropped)
        return op.add(t, op.add(t, fed, attended), hidden), None
    attended = op.add(t, attended, hidden)
    fed = _neox_mlp(layer, norm(layer, attended))
    fed = op.dropout(t, fed, dropped)
    return op.add(t, fed, attended), None


def _neox_mlp(layer: Layer, x: Tensor) -> Tensor:
    return plain_mlp(layer, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", x)


def _neox_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    t, width = layer.tape, layer.queries
    fused = heads(layer, linear(layer, "attention.query_key_value", x))
    query, key, value = op.split(t, fused, (width, width, width), Layout.HEADS)
    query, key = rotary(layer, query, key)
    result, weights = attend(layer, query, key, value)
    return linear(layer, "attention.dense", result), weights


def gptj(layer: Layer, hidden: Tensor) -> Output:
    """GPT-J: one norm for attention and MLP; queries and keys in fp32."""
    t, residual, dropped = layer.tape, hidden, layer.block.hidden_dropout
    hidden = norm(layer, hidden)
    attended, held = _gptj_attention(layer, hidden)
    fed = op.dropout(t, plain_mlp(layer, "mlp.fc_in", "mlp.fc_out", hidden), dropped)
    return op.add(t, op.add(t, attended, fed), residual), held


def _gptj_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    t, a = layer.tape, layer.attention
    query = linear(layer, "attn.q_proj", x)
    key = linear(layer, "attn.k_proj", x)
    value = linear(layer, "attn.v_proj", x)
    value = heads(layer, value)
    rest = a.head_dim - a.rope_dim
    tables = t.new(a.rope_dim * TOKEN, FP32 + INT64 + query.element)  # repeated, the positions to gather, gathered
    k_turned, k_rest = op.slices(t, key, (a.heads * a.rope_dim, a.heads * rest), Layout.TOKENS)
    q_turned, q_rest = op.slices(t, query, (a.heads * a.rope_dim, a.heads * rest), Layout.TOKENS)
    k_turned = _gptj_rotated(layer, k_turned)
    q_turned = _gptj_rotated(layer, q_turned)
    key = op.concatenate(t, [k_turned, k_rest], Layout.TOKENS)
    query = op.concatenate(t, [q_turned, q_rest], Layout.TOKENS)
    key, query = heads(layer, key), heads(layer, query)
    result, weights = _gptj_scores(layer, query, key, value)
    result = op.copy(t, result)
    result = linear(layer, "attn.out_proj", result)
    del tables
    return op.dropout(t, result, layer.block.hidden_dropout), weights


def _gptj_rotated(layer: Layer, x: Tensor) -> Tensor:
    """Sine and cosine are repeated for queries and keys alike, and kept by each product."""
    t, width = layer.tape, layer.attention.rope_dim * TOKEN
    sine, cosine = t.new(width, x.element), t.new(width, x.element)
    return op.add(
        t, op.multiply_table(t, x, table=cosine), op.multiply_table(t, rotate_half(t, x, Layout.TOKENS), table=sine)
    )


def _gptj_scores(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    t = layer.tape
    query, key = op.cast(t, query, FP32), op.cast(t, key, FP32)
    weights = scores(layer, query, key)
    weights = op.pointwise(t, weights)
    weights = op.shift(t, weights)
    weights = op.softmax(t, weights, FP32)
    weights = op.cast(t, weights, value.element)
    weights = op.dropout(t, weights, layer.attention.dropout)
    return weighted(layer, weights, value), weights


def opt(layer: Layer, hidden: Tensor) -> Output:
    """OPT: scaled queries, ReLU; norms before the sub-layers, or behind them (350M)."""
    t, residual, dropped, before = layer.tape, hidden, layer.block.hidden_dropout, not layer.block.post_norm
    if before:
        hidden = norm(layer, hidden)
    hidden, _held = _opt_attention(layer, hidden)
    hidden = op.dropout(t, hidden, dropped)
    hidden = op.add(t, residual, hidden)
    if not before:
        hidden = norm(layer, hidden)
    residual = hidden
    if before:
        hidden = norm(layer, hidden)
    hidden = linear(layer, "fc1", hidden)
    hidden = activated(layer, hidden)
    hidden = linear(layer, "fc2", hidden)
    hidden = op.dropout(t, hidden, dropped)
    hidden = op.add(t, residual, hidden)
    return (hidden if before else norm(layer, hidden)), None


def _opt_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    t = layer.tape
    query = op.pointwise(t, linear(layer, "self_attn.q_proj", x))
    query = heads(layer, query)
    key = linear(layer, "self_attn.k_proj", x)
    value = linear(layer, "self_attn.v_proj", x)
    key, value = heads(layer, key), heads(layer, value)
    result, weights = attend(layer, query, key, value)
    return linear(layer, "self_attn.out_proj", result), weights


def bloom(layer: Layer, hidden: Tensor) -> Output:
    """BLOOM: eager, with a position bias; its own GELU."""
    normed = norm(layer, hidden)
    residual = hidden
    attended, held = _bloom_attention(layer, normed, residual)
    normed = norm(layer, attended)
    residual = attended
    return _bloom_mlp(layer, normed, residual), held


def _bloom_attention(layer: Layer, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    t, a, width = layer.tape, layer.attention, layer.queries
    fused = linear(layer, "self_attention.query_key_value", x)
    query, key, value = (heads(layer, part) for part in op.slices(t, fused, (width, width, width), Layout.TOKENS))
    query = op.ready_for_bmm(t, query, alone=layer.alone)
    key = op.ready_for_bmm(t, key, alone=layer.alone)
    value = op.ready_for_bmm(t, value, alone=layer.alone)
    raw = op.matmul(t, query, key, op.scores_numel(a.heads), scaled=True)
    filled = op.shift(t, raw)
    weights = op.cast(t, op.softmax(t, filled, FP32), query.element)
    weights = op.dropout(t, weights, a.dropout)
    context = op.matmul(t, weights, value, width * TOKEN)
    context = op.copy(t, context)
    out = linear(layer, "self_attention.dense", context)
    out = op.add(t, residual, op.dropout(t, out, layer.block.hidden_dropout))
    return out, weights


def _bloom_mlp(layer: Layer, x: Tensor, residual: Tensor) -> Tensor:
    t = layer.tape
    x = activated(layer, linear(layer, "mlp.dense_h_to_4h", x))
    intermediate = linear(layer, "mlp.dense_4h_to_h", x)
    return op.add(t, residual, op.dropout(t, intermediate, layer.block.hidden_dropout))


def mpt(layer: Layer, hidden: Tensor) -> Output:
    """MPT: eager, with a position bias in fp32 and a filled mask."""
    t = layer.tape
    normed = norm(layer, hidden)
    residual = hidden
    attended, held = _mpt_attention(layer, normed)
    hidden = op.add(t, op.dropout(t, attended, layer.block.hidden_dropout), residual)
    normed = norm(layer, hidden)
    residual = hidden
    return _mpt_mlp(layer, normed, residual), held


def _mpt_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor]:
    t, a, width = layer.tape, layer.attention, layer.queries
    fused = linear(layer, "attn.Wqkv", x)
    query, key, value = op.split(t, fused, (width, width, width))
    query, key, value = heads(layer, query), heads(layer, key), heads(layer, value)
    raw = op.pointwise(t, scores(layer, query, key))
    raw = op.shift(t, raw, FP32)
    raw = op.pointwise(t, raw)
    weights = op.cast(t, op.softmax(t, raw, FP32), value.element)
    weights = op.dropout(t, weights, a.dropout)
    context = weighted(layer, weights, value)
    context = op.copy(t, context)
    return linear(layer, "attn.out_proj", context), weights


def _mpt_mlp(layer: Layer, x: Tensor, residual: Tensor) -> Tensor:
    t = layer.tape
    x = activated(layer, linear(layer, "ffn.up_proj", x))
    intermediate = linear(layer, "ffn.down_proj", x)
    output = op.dropout(t, intermediate, layer.block.hidden_dropout)
    return op.add(t, output, residual)


def falcon(layer: Layer, hidden: Tensor) -> Output:
    """Falcon: attention and MLP side by side after one norm or two, or one after the other."""
    t, block, residual = layer.tape, layer.block, hidden
    normed = norm(layer, hidden)
    beside = norm(layer, hidden) if block.parallel_residual and block.norms == 2 else None
    attended, held = _falcon_attention(layer, normed)
    if not block.parallel_residual:
        residual = op.add(t, residual, op.dropout(t, attended, layer.attention.dropout))
        beside = norm(layer, residual)
    fed = _falcon_mlp(layer, normed if beside is None else beside)
    if block.parallel_residual:
        fed = op.add_in_place(t, fed, attended)
    return op.add(t, residual, op.dropout(t, fed, block.hidden_dropout)), held


def _falcon_mlp(layer: Layer, x: Tensor) -> Tensor:
    x = activated(layer, linear(layer, "mlp.dense_h_to_4h", x))
    return linear(layer, "mlp.dense_4h_to_h", x)


def _falcon_attention(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
    fused = linear(layer, "self_attention.query_key_value", x)
    query, key, value = _falcon_heads(layer, fused)
    if not layer.attention.alibi:
        query, key = rotary(layer, query, key)
    result, weights = _falcon_attend(layer, query, key, value)
    return linear(layer, "self_attention.dense", result), weights


def _falcon_heads(layer: Layer, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Selected from the fused projection: views, or copies for all heads where these share keys."""
    t, a = layer.tape, layer.attention
    if a.kv_heads == a.heads and not _regrouped(layer):
        query, key, value = op.slices(t, fused, (layer.queries,) * 3, Layout.TOKENS)
        return heads(layer, query), heads(layer, key), heads(layer, value)
    (query,) = op.slices(t, fused, (layer.queries,), Layout.TOKENS)
    key = op.select_copy(t, fused, layer.keys)
    value = op.select_copy(t, fused, layer.keys)
    if a.kv_heads > 1:
        query = op.copy(t, query)
        key, value = op.spread(t, key, layer.queries), op.spread(t, value, layer.queries)
    return heads(layer, query), heads(layer, key), heads(layer, value)


def _regrouped(layer: Layer) -> bool:
    return layer.block.parallel_residual and layer.block.norms == 2


def _falcon_attend(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
    if is_composed(layer):
        return composed(layer, query, key, value), None
    if not layer.recipe.eager:
        return efficient(layer, query, key, value, spread=False), None
    return _falcon_eager(layer, query, key, value)


def _falcon_eager(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Scores in the training precision; with alibi in fp32 first. Keys of one head are broadcast by the product."""
    t, a = layer.tape, layer.attention
    shared = a.kv_heads == 1
    raw = scores(layer, query, repeated(layer, key) if shared else key)
    if a.alibi:
        raw = op.cast(t, raw, FP32)
        logits = op.shift(t, raw)
        weights = op.softmax(t, op.shift(t, logits), query.element)
        weights = op.dropout(t, weights, a.dropout)
    else:
        raw = op.softmax(t, op.shift(t, raw), query.element)
        weights = raw
    out = weighted(layer, weights, repeated(layer, value) if shared else value)
    return op.copy(t, out), weights


DECODERS: dict[str, Decoder] = {
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gemma": llama,
    "gemma2": gemma2,
    "gemma3_text": gemma2,
    "gemma3": gemma2,
    "olmo2": olmo2,
    "phi3": phi3,
    "phi": phi,
    "starcoder2": starcoder2,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gptj": gptj,
    "opt": opt,
    "bloom": bloom,
    "mpt": mpt,
    "falcon": falcon,
}
