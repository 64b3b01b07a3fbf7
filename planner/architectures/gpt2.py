"""GPT-2: learned positions, layer norms, one Conv1D for q, k and v.

Source:
    transformers 5.23.0 models/gpt2/modeling_gpt2.py, configuration_gpt2.py.
"""

from __future__ import annotations

from ..model import Attention, Block, NormStyle
from .parts import Anatomy, Recipe, conv1d_linear, embedding, layer_norm, lm_head, plain_mlp
from .reader import Reader

DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
SYNONYMS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
WIDENING = 4  # n_inner left out: GPT2Block


def block_of(reader: Reader, hidden: int) -> Block:
    """One layer."""
    heads, inner = reader.heads(hidden, "n_head"), reader.size_or("n_inner", WIDENING * hidden)
    return Block(
        parameters=layer_norm("ln_1", hidden)
        + conv1d_linear("attn.c_attn", hidden, 3 * hidden)
        + conv1d_linear("attn.c_proj", hidden, hidden)
        + layer_norm("ln_2", hidden)
        + conv1d_linear("mlp.c_fc", hidden, inner)
        + conv1d_linear("mlp.c_proj", inner, hidden),
        norm=NormStyle.LAYER,
        hidden_dropout=reader.probability("resid_pdrop"),
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=max(1, hidden // heads),
            fused_qkv=True,
            softmax_16bit=True,
            dropout=reader.probability("attn_pdrop"),
        ),
        mlp=plain_mlp(reader, activation="activation_function", intermediate=inner),
    )


def build(reader: Reader) -> Anatomy:
    """wte and wpe, the layers, ln_f."""
    if reader.flag("add_cross_attention"):
        reader.refuse("add_cross_attention", True, "false: a decoder alone is modelled")
    hidden, vocab, positions = reader.size("n_embd"), reader.size("vocab_size"), reader.size("n_positions")
    tied = reader.flag("tie_word_embeddings")
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("wte", vocab, hidden) + embedding("wpe", positions, hidden),
        blocks=(block_of(reader, hidden),) * reader.depth("n_layer"),
        head=layer_norm("ln_f", hidden) + lm_head(hidden, vocab, tied=tied),
        max_positions=positions,
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms=SYNONYMS)
