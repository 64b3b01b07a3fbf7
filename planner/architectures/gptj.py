"""GPT-J: attention and MLP side by side after one layer norm, a part of each head rotated, a head with a bias.

Source:
    transformers 5.23.0 models/gptj/modeling_gptj.py (no SDPA path; queries and keys cast to fp32) and
    configuration_gptj.py.
"""

from __future__ import annotations

from ..model import Attention, Block, NormStyle, ParameterKind, linear
from .gpt2 import SYNONYMS, WIDENING
from .parts import Anatomy, Recipe, embedding, layer_norm, lm_head, plain_mlp, tensor
from .reader import Reader

DEFAULTS = {
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "tie_word_embeddings": False,
}


def block_of(reader: Reader, hidden: int) -> Block:
    """One layer; k and v stand before q, as modeling_gptj.py registers them."""
    heads, inner = reader.heads(hidden, "n_head"), reader.size_or("n_inner", WIDENING * hidden)
    head_dim = max(1, hidden // heads)
    return Block(
        parameters=layer_norm("ln_1", hidden)
        + tuple(
            p for name in ("k_proj", "v_proj", "q_proj", "out_proj") for p in linear(f"attn.{name}", hidden, hidden)
        )
        + linear("mlp.fc_in", hidden, inner, bias=True)
        + linear("mlp.fc_out", inner, hidden, bias=True),
        norm=NormStyle.LAYER,
        norms=1,
        parallel_residual=True,
        hidden_dropout=reader.probability("resid_pdrop"),
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            rope_dim=reader.size_or("rotary_dim", head_dim),
            eager_only=True,
            fp32_scores=True,
            dropout=reader.probability("attn_pdrop"),
        ),
        mlp=plain_mlp(reader, activation="activation_function", intermediate=inner),
    )


def build(reader: Reader) -> Anatomy:
    """The head's bias stays where its weight is tied."""
    hidden, vocab, tied = reader.size("n_embd"), reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    bias = tensor("lm_head.bias", vocab, kind=ParameterKind.BIAS)
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("wte", vocab, hidden),
        blocks=(block_of(reader, hidden),) * reader.depth("n_layer"),
        head=layer_norm("ln_f", hidden) + lm_head(hidden, vocab, tied=tied) + bias,
        max_positions=reader.size("n_positions"),
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms=SYNONYMS)
