"""Llama 1 to 3, and what shares its code: TinyLlama, SmolLM2, Yi, Vicuna.

Source:
    transformers 5.23.0 models/llama/modeling_llama.py, configuration_llama.py.
"""

from __future__ import annotations

from ..model import Block, NormStyle
from .parts import Anatomy, Recipe, around, gated, gated_mlp, grouped_attention, projections, two_norms
from .reader import Reader

DEFAULTS = {
    "vocab_size": 32000,
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
    "head_dim": None,
}


def build(reader: Reader) -> Anatomy:
    """Pre-norm, rotary grouped-query attention, SwiGLU."""
    hidden = reader.size("hidden_size")
    attention, mlp = grouped_attention(reader, hidden), gated(reader)
    block = Block(
        parameters=projections(attention, hidden, bias=reader.flag("attention_bias"))
        + gated_mlp("mlp", hidden, mlp.intermediate, bias=reader.flag("mlp_bias"))
        + two_norms(hidden),
        norm=NormStyle.RMS,
        attention=attention,
        mlp=mlp,
    )
    return around(reader, hidden, (block,) * reader.depth())


RECIPE = Recipe(build=build, defaults=DEFAULTS)
