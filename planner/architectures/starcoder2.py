"""StarCoder2: grouped-query attention with rotary embeddings, layer norms, a plain MLP, biases everywhere.

Source:
    transformers 5.23.0 models/starcoder2/modeling_starcoder2.py, configuration_starcoder2.py.
"""

from __future__ import annotations

from ..model import Block, NormStyle, linear
from .parts import Anatomy, Recipe, around, grouped_attention, layer_norm, plain_mlp, projections
from .reader import Reader

DEFAULTS = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "sliding_window": None,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "use_bias": True,
    "tie_word_embeddings": True,
}


def build(reader: Reader) -> Anatomy:
    """``use_bias`` decides all biases but the head's, which has none."""
    hidden, inner, bias = reader.size("hidden_size"), reader.size("intermediate_size"), reader.flag("use_bias")
    attention = grouped_attention(reader, hidden, window=reader.window())
    block = Block(
        parameters=projections(attention, hidden, bias=bias)
        + linear("mlp.c_fc", hidden, inner, bias=bias)
        + linear("mlp.c_proj", inner, hidden, bias=bias)
        + layer_norm("input_layernorm", hidden)
        + layer_norm("post_attention_layernorm", hidden),
        norm=NormStyle.LAYER,
        hidden_dropout=reader.probability("residual_dropout"),
        attention=attention,
        mlp=plain_mlp(reader, activation="hidden_act", intermediate=inner),
    )
    return around(reader, hidden, (block,) * reader.depth(), norm=NormStyle.LAYER)


RECIPE = Recipe(build=build, defaults=DEFAULTS)
