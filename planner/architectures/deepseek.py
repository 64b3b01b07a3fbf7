"""DeepSeek V2 and V3: multi-head latent attention, a few dense layers, then experts and shared experts.

V3's multi-token prediction module is not part of the model that transformers trains.

Source:
    transformers 5.23.0 models/deepseek_v2/modeling_deepseek_v2.py, models/deepseek_v3/modeling_deepseek_v3.py and
    their configuration files.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Attention, AttentionKind, Block, Mlp, NormStyle, linear
from .parts import (
    Anatomy,
    Recipe,
    Tensors,
    around,
    blocks_of,
    experts,
    gated,
    gated_mlp,
    mixture,
    rms_norm,
    tensor,
    two_norms,
)
from .reader import Reader

V2_DEFAULTS = {
    "vocab_size": 102400,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
}
V3_DEFAULTS = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "first_k_dense_replace": 3,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
}


def attention_of(reader: Reader, hidden: int) -> Attention:
    """Queries and keys have a part without and a part with rotation; values are narrower."""
    heads, rotated = reader.heads(hidden), reader.size("qk_rope_head_dim")
    return Attention(
        kind=AttentionKind.MLA,
        heads=heads,
        kv_heads=reader.kv_heads(heads),
        head_dim=reader.size("qk_nope_head_dim") + rotated,
        value_dim=reader.size("v_head_dim"),
        q_lora_rank=reader.size_or("q_lora_rank", 0),
        kv_lora_rank=reader.size("kv_lora_rank"),
        rope_dim=rotated,
        dropout=reader.probability("attention_dropout"),
    )


def query_tensors(attention: Attention, hidden: int, *, bias: bool) -> Tensors:
    """q_proj, or its two factors with a norm between."""
    queries, rank = attention.heads * attention.head_dim, attention.q_lora_rank
    if not rank:
        return linear("self_attn.q_proj", hidden, queries)
    return (
        linear("self_attn.q_a_proj", hidden, rank, bias=bias)
        + rms_norm("self_attn.q_a_layernorm", rank)
        + linear("self_attn.q_b_proj", rank, queries)
    )


def attention_tensors(attention: Attention, hidden: int, *, bias: bool) -> Tensors:
    """All of self_attn."""
    heads, values, rank = attention.heads, attention.value_dim, attention.kv_lora_rank
    unrotated = attention.head_dim - attention.rope_dim
    return (
        query_tensors(attention, hidden, bias=bias)
        + linear("self_attn.kv_a_proj_with_mqa", hidden, rank + attention.rope_dim, bias=bias)
        + rms_norm("self_attn.kv_a_layernorm", rank)
        + linear("self_attn.kv_b_proj", rank, heads * (unrotated + values))
        + linear("self_attn.o_proj", heads * values, hidden, bias=bias)
    )


def sparse_mlp(hidden: int, mlp: Mlp, *, bias: bool) -> Tensors:
    """Experts, router, shared experts as one MLP."""
    return (
        experts("mlp.experts", mlp.experts, hidden, mlp.intermediate)
        + tensor("mlp.gate.weight", mlp.experts, hidden)
        + gated_mlp("mlp.shared_experts", hidden, mlp.shared_intermediate, bias=bias)
    )


def mixture_of(reader: Reader) -> Mlp:
    """Routed and shared experts; the router works in fp32."""
    mlp = mixture(reader, count="n_routed_experts", intermediate="moe_intermediate_size")
    shared = reader.size("n_shared_experts") * mlp.intermediate
    return replace(mlp, shared_intermediate=shared, router_fp32=True, routing_fp32=True)


def build(reader: Reader, *, mlp_bias: bool = False) -> Anatomy:
    """The first ``first_k_dense_replace`` layers are dense."""
    hidden, layers, first = reader.size("hidden_size"), reader.depth(), reader.size("first_k_dense_replace", least=0)
    attention, dense, many = attention_of(reader, hidden), gated(reader), mixture_of(reader)
    attended = attention_tensors(attention, hidden, bias=reader.flag("attention_bias"))

    def block(has_experts: bool) -> Block:
        inner = (
            sparse_mlp(hidden, many, bias=mlp_bias)
            if has_experts
            else gated_mlp("mlp", hidden, dense.intermediate, bias=mlp_bias)
        )
        return Block(
            parameters=attended + inner + two_norms(hidden),
            norm=NormStyle.RMS,
            attention=attention,
            mlp=many if has_experts else dense,
        )

    return around(reader, hidden, blocks_of((i >= first for i in range(layers)), block))


def build_v2(reader: Reader) -> Anatomy:
    """V2 alone knows ``mlp_bias``."""
    return build(reader, mlp_bias=reader.flag("mlp_bias"))


V2 = Recipe(build=build_v2, defaults=V2_DEFAULTS, synonyms={"num_experts": "n_routed_experts"})
V3 = Recipe(build=build, defaults=V3_DEFAULTS, synonyms={"num_local_experts": "n_routed_experts"})
