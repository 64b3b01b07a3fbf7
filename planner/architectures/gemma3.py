"""Gemma 3: Gemma 2 with norms of q and k, five layers with a window for each without, and no soft-caps.

``gemma3`` is the multimodal model: its text part alone is built, from ``text_config``.

Source:
    transformers 5.23.0 models/gemma3/modeling_gemma3.py (``Gemma3Attention`` stores attn_logit_softcapping and does
    not use it), configuration_gemma3.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, NormStyle
from .gemma2 import DEFAULTS as GEMMA2_DEFAULTS
from .gemma2 import four_norms
from .parts import Anatomy, Recipe, around, blocks_of, gated, gated_mlp, grouped_attention, head_norms, projections
from .reader import Reader

DEFAULTS = {
    **GEMMA2_DEFAULTS,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "sliding_window_pattern": 6,
}


def build(reader: Reader) -> Anatomy:
    """Every sixth layer sees everything, unless ``layer_types`` says otherwise."""
    hidden, layers, window = reader.size("hidden_size"), reader.depth(), reader.window()
    if reader.flag("use_bidirectional_attention"):
        window = window // 2 + 1
    period = reader.size("sliding_window_pattern")
    attention = grouped_attention(reader, hidden, qk_norm=True)
    mlp = gated(reader, activation="hidden_activation")
    parameters = (
        projections(attention, hidden, bias=reader.flag("attention_bias"))
        + head_norms(attention.head_dim)
        + gated_mlp("mlp", hidden, mlp.intermediate)
        + four_norms(hidden)
    )

    def block(slides: bool) -> Block:
        return Block(
            parameters=parameters,
            norm=NormStyle.RMS_FP32,
            norms=4,
            attention=replace(attention, window=window if slides else 0),
            mlp=mlp,
        )

    blocks = blocks_of(reader.sliding(layers, tuple((i + 1) % period != 0 for i in range(layers))), block)
    return around(reader, hidden, blocks, norm=NormStyle.RMS_FP32, soft_cap=reader.capped("final_logit_softcapping"))


def build_text_part(reader: Reader) -> Anatomy:
    """The language model of the multimodal checkpoint; whether its head is tied stands outside ``text_config``."""
    inner = {**reader.nested("text_config"), "tie_word_embeddings": reader.value("tie_word_embeddings")}
    text = Reader(inner, DEFAULTS)
    anatomy = build(text)
    reader.problems.extend(f"text_config.{problem}" for problem in text.problems)
    return anatomy


RECIPE = Recipe(build=build, defaults=DEFAULTS)
MULTIMODAL = Recipe(build=build_text_part, defaults={"text_config": None, "tie_word_embeddings": True})
