"""Mixtral: Mistral's attention, a mixture of SwiGLU experts in every layer.

Source:
    transformers 5.23.0 models/mixtral/modeling_mixtral.py, configuration_mixtral.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, NormStyle
from .parts import Anatomy, Recipe, around, experts, grouped_attention, mixture, projections, tensor, two_norms
from .reader import Reader

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 4096 * 32,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
}


def build(reader: Reader) -> Anatomy:
    """The router is a bare tensor, so that neither peft nor bitsandbytes takes it for an nn.Linear."""
    hidden = reader.size("hidden_size")
    attention = grouped_attention(reader, hidden, window=reader.window())
    mlp = replace(mixture(reader, count="num_local_experts", intermediate="intermediate_size"), routing_fp32=True)
    block = Block(
        parameters=projections(attention, hidden)
        + tensor("mlp.gate.weight", mlp.experts, hidden)
        + experts("mlp.experts", mlp.experts, hidden, mlp.intermediate)
        + two_norms(hidden),
        norm=NormStyle.RMS,
        attention=attention,
        mlp=mlp,
    )
    return around(reader, hidden, (block,) * reader.depth())


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms={"num_experts": "num_local_experts"})
