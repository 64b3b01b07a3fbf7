"""Qwen2 and Qwen2.5: Llama's block with biases on q, k and v.

Source:
    transformers 5.23.0 models/qwen2/modeling_qwen2.py, configuration_qwen2.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, NormStyle
from .parts import Anatomy, Recipe, around, blocks_of, gated, gated_mlp, grouped_attention, projections, two_norms
from .reader import Reader

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "attention_dropout": 0.0,
}


def windows(reader: Reader, layers: int) -> tuple[int, ...]:
    """Each layer's window: from layer ``max_window_layers`` on, where ``use_sliding_window`` is set."""
    window = reader.window() if reader.flag("use_sliding_window") else 0
    first = reader.size("max_window_layers", least=0)
    sliding = reader.sliding(layers, tuple(window > 0 and i >= first for i in range(layers)))
    return tuple(window if slides else 0 for slides in sliding)


def build(reader: Reader) -> Anatomy:
    """As Llama, with biases on the projections into the attention and none out of it."""
    hidden, layers = reader.size("hidden_size"), reader.depth()
    attention, mlp = grouped_attention(reader, hidden), gated(reader)
    parameters = (
        projections(attention, hidden, bias=True, out_bias=False)
        + gated_mlp("mlp", hidden, mlp.intermediate)
        + two_norms(hidden)
    )

    def block(window: int) -> Block:
        return Block(parameters=parameters, norm=NormStyle.RMS, attention=replace(attention, window=window), mlp=mlp)

    return around(reader, hidden, blocks_of(windows(reader, layers), block))


RECIPE = Recipe(build=build, defaults=DEFAULTS)
