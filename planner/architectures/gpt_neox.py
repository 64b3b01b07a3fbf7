"""GPT-NeoX and Pythia: attention and MLP side by side, each after its own layer norm, one projection for q, k and v.

Source:
    transformers 5.23.0 models/gpt_neox/modeling_gpt_neox.py, configuration_gpt_neox.py.
"""

from __future__ import annotations

from ..model import Attention, Block, NormStyle, linear
from .parts import Anatomy, Recipe, embedding, layer_norm, lm_head, plain_mlp
from .reader import Reader

DEFAULTS = {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "intermediate_size": 24576,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "attention_bias": True,
}
ROTATED = 0.25  # rotary_pct left out: configuration_gpt_neox.py, ``convert_rope_params_to_dict``


def block_of(reader: Reader, hidden: int) -> Block:
    """One layer."""
    heads, inner = reader.heads(hidden), reader.size("intermediate_size")
    head_dim, bias = max(1, hidden // heads), reader.flag("attention_bias")
    return Block(
        parameters=layer_norm("input_layernorm", hidden)
        + layer_norm("post_attention_layernorm", hidden)
        + linear("attention.query_key_value", hidden, 3 * hidden, bias=bias)
        + linear("attention.dense", hidden, hidden, bias=bias)
        + linear("mlp.dense_h_to_4h", hidden, inner, bias=True)
        + linear("mlp.dense_4h_to_h", inner, hidden, bias=True),
        norm=NormStyle.LAYER,
        parallel_residual=reader.flag("use_parallel_residual"),
        hidden_dropout=reader.probability("hidden_dropout"),
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            rope_dim=reader.rotary(head_dim, key="rotary_pct", default=ROTATED),
            fused_qkv=True,
            dropout=reader.probability("attention_dropout"),
        ),
        mlp=plain_mlp(reader, activation="hidden_act", intermediate=inner),
    )


def build(reader: Reader) -> Anatomy:
    """embed_in, the layers, final_layer_norm, lm_head."""
    hidden, vocab, tied = reader.size("hidden_size"), reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("embed_in", vocab, hidden),
        blocks=(block_of(reader, hidden),) * reader.depth(),
        head=layer_norm("final_layer_norm", hidden) + lm_head(hidden, vocab, tied=tied),
        max_positions=reader.size("max_position_embeddings"),
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS)
