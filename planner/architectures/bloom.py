"""BLOOM: ALiBi instead of positions, a norm after the embedding, one projection for q, k and v.

Source:
    transformers 5.23.0 models/bloom/modeling_bloom.py (no SDPA path; its own GELU), configuration_bloom.py.
"""

from __future__ import annotations

from ..model import Attention, Block, Mlp, MlpKind, NormStyle, linear
from .parts import Anatomy, Recipe, embedding, layer_norm, lm_head
from .reader import Reader

DEFAULTS = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "tie_word_embeddings": True,
}
SYNONYMS = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "n_embed": "hidden_size"}
WIDENING = 4  # BloomMLP: no key for it


def block_of(reader: Reader, hidden: int) -> Block:
    """One layer."""
    heads = reader.heads(hidden, "n_head")
    return Block(
        parameters=layer_norm("input_layernorm", hidden)
        + linear("self_attention.query_key_value", hidden, 3 * hidden, bias=True)
        + linear("self_attention.dense", hidden, hidden, bias=True)
        + layer_norm("post_attention_layernorm", hidden)
        + linear("mlp.dense_h_to_4h", hidden, WIDENING * hidden, bias=True)
        + linear("mlp.dense_4h_to_h", WIDENING * hidden, hidden, bias=True),
        norm=NormStyle.LAYER,
        hidden_dropout=reader.probability("hidden_dropout"),
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=max(1, hidden // heads),
            fused_qkv=True,
            alibi=True,
            eager_only=True,
            dropout=reader.probability("attention_dropout"),
        ),
        mlp=Mlp(kind=MlpKind.PLAIN, activation="gelu_bloom", intermediate=WIDENING * hidden),
    )


def build(reader: Reader) -> Anatomy:
    """word_embeddings and their norm, the layers, ln_f."""
    hidden, vocab, tied = reader.size("hidden_size"), reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("word_embeddings", vocab, hidden) + layer_norm("word_embeddings_layernorm", hidden),
        blocks=(block_of(reader, hidden),) * reader.depth("n_layer"),
        head=layer_norm("ln_f", hidden) + lm_head(hidden, vocab, tied=tied),
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms=SYNONYMS)
