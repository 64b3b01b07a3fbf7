"""MPT: ALiBi, layer norms without bias, one projection for q, k and v.

Source:
    transformers 5.23.0 models/mpt/modeling_mpt.py (no SDPA path; ``expansion_ratio``, ``no_bias``, ``qk_ln`` and
    ``learned_pos_emb`` change nothing), configuration_mpt.py.
"""

from __future__ import annotations

from ..model import Attention, Block, Mlp, MlpKind, NormStyle, linear
from .parts import Anatomy, Recipe, embedding, lm_head, rms_norm
from .reader import Reader

DEFAULTS = {
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "max_seq_len": 2048,
    "vocab_size": 50368,
    "attn_config": None,
    "tie_word_embeddings": True,
}
SYNONYMS = {"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"}
WIDENING = 4  # MptMLP: written into the code


def dropout_of(reader: Reader) -> float:
    """``attn_config.attn_pdrop``, which also drops from the residual stream."""
    inner = Reader(reader.nested("attn_config"), {"attn_pdrop": 0.0})
    dropout = inner.probability("attn_pdrop")
    reader.problems.extend(f"attn_config.{problem}" for problem in inner.problems)
    return dropout


def block_of(reader: Reader, hidden: int) -> Block:
    """One layer."""
    heads, dropout = reader.heads(hidden, "n_heads"), dropout_of(reader)
    return Block(
        parameters=rms_norm("norm_1", hidden)
        + linear("attn.Wqkv", hidden, 3 * hidden)
        + linear("attn.out_proj", hidden, hidden)
        + rms_norm("norm_2", hidden)
        + linear("ffn.up_proj", hidden, WIDENING * hidden)
        + linear("ffn.down_proj", WIDENING * hidden, hidden),
        norm=NormStyle.LAYER,
        hidden_dropout=dropout,
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=max(1, hidden // heads),
            fused_qkv=True,
            alibi=True,
            eager_only=True,
            dropout=dropout,
        ),
        mlp=Mlp(kind=MlpKind.PLAIN, activation="gelu", intermediate=WIDENING * hidden),
    )


def build(reader: Reader) -> Anatomy:
    """wte, the blocks, norm_f."""
    hidden, vocab, tied = reader.size("d_model"), reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("wte", vocab, hidden),
        blocks=(block_of(reader, hidden),) * reader.depth("n_layers"),
        head=rms_norm("norm_f", hidden) + lm_head(hidden, vocab, tied=tied),
        max_positions=reader.size("max_seq_len"),
        final_norm=NormStyle.LAYER,
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms=SYNONYMS)
