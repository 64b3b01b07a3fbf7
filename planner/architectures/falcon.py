"""Falcon in its three variants: 7B (one key-value head, one norm), 40B and 180B (grouped heads, two norms), RW (ALiBi).

Source:
    transformers 5.23.0 models/falcon/modeling_falcon.py (a mask is always built), configuration_falcon.py.
"""

from __future__ import annotations

from ..model import Attention, Block, NormStyle, linear
from .parts import Anatomy, Recipe, Tensors, embedding, layer_norm, lm_head, plain_mlp
from .reader import Reader

DEFAULTS = {
    "vocab_size": 65024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_ln_in_parallel_attn": None,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "num_kv_heads": None,
    "alibi": False,
    "new_decoder_architecture": False,
    "multi_query": True,
    "parallel_attn": True,
    "bias": False,
    "max_position_embeddings": 2048,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "tie_word_embeddings": True,
}
WIDENING = 4  # ffn_hidden_size left out: configuration_falcon.py, ``__post_init__``


def attention_of(reader: Reader, hidden: int) -> Attention:
    """Grouped heads in the new decoder, else one key-value head or as many as there are queries."""
    heads, alibi = reader.heads(hidden), reader.flag("alibi")
    grouped, single = reader.flag("new_decoder_architecture"), reader.flag("multi_query")
    head_dim = max(1, hidden // heads)
    return Attention(
        heads=heads,
        kv_heads=reader.kv_heads(heads, "num_kv_heads") if grouped else 1 if single else heads,
        head_dim=head_dim,
        rope_dim=0 if alibi else head_dim,
        fused_qkv=True,
        alibi=alibi,
        dense_mask=True,
        dropout=reader.probability("attention_dropout"),
    )


def norms_of(reader: Reader) -> tuple[str, ...]:
    """Names of a layer's norms."""
    if not reader.flag("parallel_attn"):
        return ("post_attention_layernorm", "input_layernorm")
    wanted = reader.size_or("num_ln_in_parallel_attn", 2 if reader.flag("new_decoder_architecture") else 1)
    return ("ln_attn", "ln_mlp") if wanted == 2 else ("input_layernorm",)


def tensors_of(attention: Attention, hidden: int, inner: int, norms: tuple[str, ...], *, bias: bool) -> Tensors:
    """One layer's tensors."""
    fused = (attention.heads + 2 * attention.kv_heads) * attention.head_dim
    return (
        linear("self_attention.query_key_value", hidden, fused, bias=bias)
        + linear("self_attention.dense", hidden, hidden, bias=bias)
        + linear("mlp.dense_h_to_4h", hidden, inner, bias=bias)
        + linear("mlp.dense_4h_to_h", inner, hidden, bias=bias)
        + tuple(p for name in norms for p in layer_norm(name, hidden))
    )


def build(reader: Reader) -> Anatomy:
    """word_embeddings, the layers, ln_f."""
    hidden, vocab, tied = reader.size("hidden_size"), reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    attention, inner, norms = (
        attention_of(reader, hidden),
        reader.size_or("ffn_hidden_size", WIDENING * hidden),
        norms_of(reader),
    )
    block = Block(
        parameters=tensors_of(attention, hidden, inner, norms, bias=reader.flag("bias")),
        norm=NormStyle.LAYER,
        norms=len(norms),
        parallel_residual=reader.flag("parallel_attn") or reader.flag("new_decoder_architecture"),
        hidden_dropout=reader.probability("hidden_dropout"),
        attention=attention,
        mlp=plain_mlp(reader, activation="activation", intermediate=inner),
    )
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("word_embeddings", vocab, hidden),
        blocks=(block,) * reader.depth(),
        head=layer_norm("ln_f", hidden) + lm_head(hidden, vocab, tied=tied),
        max_positions=reader.size("max_position_embeddings"),
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms={"n_embed": "hidden_size"})
