"""Phi-1, -1.5 and -2: attention and MLP side by side after one layer norm, biases everywhere, the head included.

Source:
    transformers 5.23.0 models/phi/modeling_phi.py, configuration_phi.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Attention, Block, NormStyle, ParameterKind, linear
from .parts import Anatomy, Recipe, Tensors, around, grouped_attention, layer_norm, plain_mlp, tensor
from .reader import Reader

DEFAULTS = {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "resid_pdrop": 0.0,
    "attention_dropout": 0.0,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "qk_layernorm": False,
}
ROTATED = 0.5  # partial_rotary_factor left out: configuration_phi.py, ``__post_init__``


def self_attention(attention: Attention, hidden: int) -> Tensors:
    """Projections with biases, then the norms of q and k where there are any."""
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    norms = tuple(
        p for which in "qk" for p in layer_norm(f"self_attn.{which}_layernorm", attention.head_dim) if attention.qk_norm
    )
    return (
        linear("self_attn.q_proj", hidden, queries, bias=True)
        + linear("self_attn.k_proj", hidden, keys, bias=True)
        + linear("self_attn.v_proj", hidden, keys, bias=True)
        + linear("self_attn.dense", queries, hidden, bias=True)
        + norms
    )


def build(reader: Reader) -> Anatomy:
    """The final norm has its own name, and the head a bias even where its weight is tied."""
    hidden, intermediate = reader.size("hidden_size"), reader.size("intermediate_size")
    attention = grouped_attention(reader, hidden, qk_norm=reader.flag("qk_layernorm"))
    attention = replace(attention, rope_dim=reader.rotary(attention.head_dim, default=ROTATED))
    block = Block(
        parameters=self_attention(attention, hidden)
        + linear("mlp.fc1", hidden, intermediate, bias=True)
        + linear("mlp.fc2", intermediate, hidden, bias=True)
        + layer_norm("input_layernorm", hidden),
        norm=NormStyle.LAYER,
        norms=1,
        parallel_residual=True,
        hidden_dropout=reader.probability("resid_pdrop"),
        attention=attention,
        mlp=plain_mlp(reader, activation="hidden_act", intermediate=intermediate),
    )
    anatomy = around(reader, hidden, (block,) * reader.depth(), norm=NormStyle.LAYER)
    output = () if anatomy.tied else linear("lm_head", hidden, anatomy.vocab)
    bias = tensor("lm_head.bias", anatomy.vocab, kind=ParameterKind.BIAS)
    return replace(anatomy, head=layer_norm("final_layernorm", hidden) + output + bias)


RECIPE = Recipe(build=build, defaults=DEFAULTS)
