"""Mistral 7B and its kin: Llama's block with a sliding window on every layer.

Source:
    transformers 5.23.0 models/mistral/modeling_mistral.py, configuration_mistral.py.
"""

from __future__ import annotations

from ..model import Block, NormStyle
from .parts import Anatomy, Recipe, around, gated, gated_mlp, grouped_attention, projections, two_norms
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
    "sliding_window": 4096,
    "attention_dropout": 0.0,
}


def build(reader: Reader) -> Anatomy:
    """As Llama, never a bias."""
    hidden = reader.size("hidden_size")
    attention, mlp = grouped_attention(reader, hidden, window=reader.window()), gated(reader)
    block = Block(
        parameters=projections(attention, hidden) + gated_mlp("mlp", hidden, mlp.intermediate) + two_norms(hidden),
        norm=NormStyle.RMS,
        attention=attention,
        mlp=mlp,
    )
    return around(reader, hidden, (block,) * reader.depth())


RECIPE = Recipe(build=build, defaults=DEFAULTS)
