"""OLMo 2: Llama's block with norms after the sub-layers, and norms over all of q and all of k.

Source:
    transformers 5.23.0 models/olmo2/modeling_olmo2.py, configuration_olmo2.py.
"""

from __future__ import annotations

from ..model import Block, NormStyle
from .parts import Anatomy, Recipe, around, gated, gated_mlp, grouped_attention, projections, rms_norm
from .reader import Reader

DEFAULTS = {
    "vocab_size": 50304,
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
}


def build(reader: Reader) -> Anatomy:
    """As Llama but for its norms."""
    hidden = reader.size("hidden_size")
    attention, mlp = grouped_attention(reader, hidden, qk_norm=True), gated(reader)
    block = Block(
        parameters=projections(attention, hidden, bias=reader.flag("attention_bias"))
        + rms_norm("self_attn.q_norm", attention.heads * attention.head_dim)
        + rms_norm("self_attn.k_norm", attention.kv_heads * attention.head_dim)
        + gated_mlp("mlp", hidden, mlp.intermediate)
        + rms_norm("post_attention_layernorm", hidden)
        + rms_norm("post_feedforward_layernorm", hidden),
        norm=NormStyle.RMS_FP32,
        post_norm=True,
        attention=attention,
        mlp=mlp,
    )
    return around(reader, hidden, (block,) * reader.depth(), norm=NormStyle.RMS_FP32)


RECIPE = Recipe(build=build, defaults=DEFAULTS)
