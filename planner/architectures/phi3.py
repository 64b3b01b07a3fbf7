"""Phi-3, Phi-3.5 and Phi-4: Llama's block with one projection for q, k and v and one for gate and up.

Source:
    transformers 5.23.0 models/phi3/modeling_phi3.py, configuration_phi3.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, NormStyle, linear
from .parts import Anatomy, Recipe, around, gated, grouped_attention, two_norms
from .reader import Reader

DEFAULTS = {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "sliding_window": None,
}


def build(reader: Reader) -> Anatomy:
    """o_proj stands before qkv_proj, as modeling_phi3.py registers them."""
    hidden = reader.size("hidden_size")
    attention, mlp = grouped_attention(reader, hidden, window=reader.window()), gated(reader)
    rotated = reader.rotary(attention.head_dim)
    attention = replace(attention, fused_qkv=True, rope_concat=True, rope_dim=rotated)
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    block = Block(
        parameters=linear("self_attn.o_proj", queries, hidden)
        + linear("self_attn.qkv_proj", hidden, queries + 2 * keys)
        + linear("mlp.gate_up_proj", hidden, 2 * mlp.intermediate)
        + linear("mlp.down_proj", mlp.intermediate, hidden)
        + two_norms(hidden),
        norm=NormStyle.RMS,
        hidden_dropout=reader.probability("resid_pdrop"),
        attention=attention,
        mlp=mlp,
    )
    return around(reader, hidden, (block,) * reader.depth())


RECIPE = Recipe(build=build, defaults=DEFAULTS)
