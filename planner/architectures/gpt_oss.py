"""gpt-oss: attention sinks, every other layer with a window, experts with biases and a clamped SwiGLU.

Source:
    transformers 5.23.0 models/gpt_oss/modeling_gpt_oss.py, configuration_gpt_oss.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Attention, Block, Mlp, NormStyle, ParameterKind
from .parts import (
    Anatomy,
    Recipe,
    Tensors,
    around,
    blocks_of,
    grouped_attention,
    mixture,
    projections,
    tensor,
    two_norms,
)
from .reader import Reader

DEFAULTS = {
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "attention_dropout": 0.0,
    "num_experts_per_tok": 4,
    "attention_bias": True,
}


def sparse_mlp(hidden: int, mlp: Mlp) -> Tensors:
    """Router and experts; their weights are (in, out), and their biases one row an expert."""
    number, inner = mlp.experts, mlp.intermediate
    return (
        tensor("mlp.router.weight", number, hidden)
        + tensor("mlp.router.bias", number, kind=ParameterKind.BIAS)
        + tensor("mlp.experts.gate_up_proj", number, hidden, 2 * inner, kind=ParameterKind.EXPERTS)
        + tensor("mlp.experts.gate_up_proj_bias", number, 2 * inner, kind=ParameterKind.BIAS)
        + tensor("mlp.experts.down_proj", number, inner, hidden, kind=ParameterKind.EXPERTS)
        + tensor("mlp.experts.down_proj_bias", number, hidden, kind=ParameterKind.BIAS)
    )


def attention_tensors(attention: Attention, hidden: int, *, bias: bool) -> Tensors:
    """The sinks stand first: a module's own parameters come before those of its children."""
    return tensor("self_attn.sinks", attention.heads) + projections(attention, hidden, bias=bias)


def build(reader: Reader) -> Anatomy:
    """Layers 0, 2, 4, ... have the window, unless ``layer_types`` says otherwise."""
    hidden, layers, window = reader.size("hidden_size"), reader.depth(), reader.window()
    attention = replace(grouped_attention(reader, hidden), sinks=True)
    mlp = mixture(reader, count="num_local_experts", intermediate="intermediate_size")
    mlp = replace(mlp, activation="swiglu_clamped")
    parameters = (
        attention_tensors(attention, hidden, bias=reader.flag("attention_bias"))
        + sparse_mlp(hidden, mlp)
        + two_norms(hidden)
    )

    def block(slides: bool) -> Block:
        return Block(
            parameters=parameters,
            norm=NormStyle.RMS_FP32,
            attention=replace(attention, window=window if slides else 0),
            mlp=mlp,
        )

    blocks = blocks_of(reader.sliding(layers, tuple(i % 2 == 0 for i in range(layers))), block)
    return around(reader, hidden, blocks, norm=NormStyle.RMS_FP32)


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms={"num_experts": "num_local_experts"})
