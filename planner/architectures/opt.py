"""OPT: learned positions with two rows to spare, layer norms, ReLU; the 350M model projects its narrow embedding.

Source:
    transformers 5.23.0 models/opt/modeling_opt.py, configuration_opt.py.
"""

from __future__ import annotations

from ..model import Attention, Block, NormStyle, linear
from .parts import Anatomy, Recipe, Tensors, embedding, layer_norm, lm_head, plain_mlp
from .reader import Reader

DEFAULTS = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
}
SPARE_POSITIONS = 2  # OPTLearnedPositionalEmbedding


def norm(name: str, width: int, *, affine: bool) -> Tensors:
    """A layer norm that may have no parameters."""
    return layer_norm(name, width) if affine else ()


def block_of(reader: Reader, hidden: int, *, affine: bool) -> Block:
    """One layer; k and v stand before q. Where the norms follow the sub-layers (350M) they keep as much memory."""
    heads, inner, bias = reader.heads(hidden), reader.size("ffn_dim"), reader.flag("enable_bias")
    attention = tuple(
        p
        for n in ("k_proj", "v_proj", "q_proj", "out_proj")
        for p in linear(f"self_attn.{n}", hidden, hidden, bias=bias)
    )
    return Block(
        parameters=attention
        + norm("self_attn_layer_norm", hidden, affine=affine)
        + linear("fc1", hidden, inner, bias=bias)
        + linear("fc2", inner, hidden, bias=bias)
        + norm("final_layer_norm", hidden, affine=affine),
        norm=NormStyle.LAYER,
        hidden_dropout=reader.probability("dropout"),
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=max(1, hidden // heads),
            dropout=reader.probability("attention_dropout"),
        ),
        mlp=plain_mlp(reader, activation="activation_function", intermediate=inner),
    )


def build(reader: Reader) -> Anatomy:
    """transformers registers the projections and the final norm before the layers: they stand with the embedding."""
    hidden, vocab, positions = (
        reader.size("hidden_size"),
        reader.size("vocab_size"),
        reader.size("max_position_embeddings"),
    )
    width, tied = reader.size_or("word_embed_proj_dim", hidden), reader.flag("tie_word_embeddings")
    affine = reader.flag("layer_norm_elementwise_affine")
    last = reader.flag("do_layer_norm_before") and not reader.flag("_remove_final_layer_norm")
    projected = linear("project_out", hidden, width) + linear("project_in", width, hidden) if width != hidden else ()
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("embed_tokens", vocab, width)
        + embedding("embed_positions", positions + SPARE_POSITIONS, hidden)
        + projected
        + norm("final_layer_norm", hidden, affine=affine and last),
        blocks=(block_of(reader, hidden, affine=affine),) * reader.depth(),
        head=lm_head(width, vocab, tied=tied),
        max_positions=positions,
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS)
