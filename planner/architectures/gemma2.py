"""Gemma 2: norms before and after each sub-layer, every other layer with a window, soft-capped scores and logits.

Source:
    transformers 5.23.0 models/gemma2/modeling_gemma2.py, configuration_gemma2.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, NormStyle
from .parts import (
    Anatomy,
    Recipe,
    Tensors,
    around,
    blocks_of,
    gated,
    gated_mlp,
    grouped_attention,
    projections,
    rms_norm,
    two_norms,
)
from .reader import Reader

DEFAULTS = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "sliding_window": 4096,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}


def four_norms(hidden: int) -> Tensors:
    """Norms around the attention, then around the MLP."""
    return (
        two_norms(hidden)
        + rms_norm("pre_feedforward_layernorm", hidden)
        + rms_norm("post_feedforward_layernorm", hidden)
    )


def build(reader: Reader) -> Anatomy:
    """Layers 0, 2, 4, ... have the window, unless ``layer_types`` says otherwise."""
    hidden, layers, window = reader.size("hidden_size"), reader.depth(), reader.window()
    attention, mlp = grouped_attention(reader, hidden), gated(reader, activation="hidden_activation")
    attention = replace(attention, soft_cap=reader.capped("attn_logit_softcapping"))
    parameters = (
        projections(attention, hidden, bias=reader.flag("attention_bias"))
        + gated_mlp("mlp", hidden, mlp.intermediate)
        + four_norms(hidden)
    )

    def block(slides: bool) -> Block:
        return Block(
            parameters=parameters,
            norm=NormStyle.RMS_FP32,
            norms=4,
            attention=replace(attention, window=window if slides else 0),
            mlp=mlp,
        )

    blocks = blocks_of(reader.sliding(layers, tuple(i % 2 == 0 for i in range(layers))), block)
    return around(reader, hidden, blocks, norm=NormStyle.RMS_FP32, soft_cap=reader.capped("final_logit_softcapping"))


RECIPE = Recipe(build=build, defaults=DEFAULTS)
