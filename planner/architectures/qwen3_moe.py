"""Qwen3-MoE: Qwen3's attention, experts in some layers, none shared.

Source:
    transformers 5.23.0 models/qwen3_moe/modeling_qwen3_moe.py, configuration_qwen3_moe.py.
"""

from __future__ import annotations

from ..model import Block, Mlp, NormStyle
from .parts import (
    Anatomy,
    Recipe,
    Tensors,
    around,
    blocks_of,
    experts,
    gated,
    gated_mlp,
    grouped_attention,
    head_norms,
    mixture,
    projections,
    tensor,
    two_norms,
)
from .qwen2_moe import sparse
from .reader import Reader

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "mlp_only_layers": None,
}


def sparse_mlp(hidden: int, mlp: Mlp) -> Tensors:
    """Experts, then their router: modeling_qwen3_moe.py registers them in this order."""
    return experts("mlp.experts", mlp.experts, hidden, mlp.intermediate) + tensor(
        "mlp.gate.weight", mlp.experts, hidden
    )


def build(reader: Reader) -> Anatomy:
    """A window, where there is one, holds in every layer."""
    hidden, layers = reader.size("hidden_size"), reader.depth()
    window = reader.window() if reader.flag("use_sliding_window") else 0
    attention, dense = grouped_attention(reader, hidden, window=window, qk_norm=True), gated(reader)
    many = mixture(reader, count="num_experts", intermediate="moe_intermediate_size")
    projected = projections(attention, hidden, bias=reader.flag("attention_bias")) + head_norms(attention.head_dim)

    def block(has_experts: bool) -> Block:
        inner = sparse_mlp(hidden, many) if has_experts else gated_mlp("mlp", hidden, dense.intermediate)
        return Block(
            parameters=projected + inner + two_norms(hidden),
            norm=NormStyle.RMS,
            attention=attention,
            mlp=many if has_experts else dense,
        )

    return around(reader, hidden, blocks_of(sparse(reader, layers), block))


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms={"num_local_experts": "num_experts"})
