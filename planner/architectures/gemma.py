"""Gemma 1: Llama's block with wide heads, GeGLU and norms computed wholly in fp32.

Source:
    transformers 5.23.0 models/gemma/modeling_gemma.py, configuration_gemma.py.
"""

from __future__ import annotations

from ..model import Block, NormStyle
from .parts import Anatomy, Recipe, around, gated, gated_mlp, grouped_attention, projections, two_norms
from .reader import Reader

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
}


def build(reader: Reader) -> Anatomy:
    """As Llama."""
    hidden = reader.size("hidden_size")
    attention, mlp = grouped_attention(reader, hidden), gated(reader)
    block = Block(
        parameters=projections(attention, hidden, bias=reader.flag("attention_bias"))
        + gated_mlp("mlp", hidden, mlp.intermediate)
        + two_norms(hidden),
        norm=NormStyle.RMS_FP32,
        attention=attention,
        mlp=mlp,
    )
    return around(reader, hidden, (block,) * reader.depth(), norm=NormStyle.RMS_FP32)


RECIPE = Recipe(build=build, defaults=DEFAULTS)
