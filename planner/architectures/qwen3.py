"""Qwen3: Qwen2's windows, norms of q and k over each head, biases only on demand.

Source:
    transformers 5.23.0 models/qwen3/modeling_qwen3.py, configuration_qwen3.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, NormStyle
from . import qwen2
from .parts import (
    Anatomy,
    Recipe,
    around,
    blocks_of,
    gated,
    gated_mlp,
    grouped_attention,
    head_norms,
    projections,
    two_norms,
)
from .reader import Reader

DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128, "attention_bias": False}


def build(reader: Reader) -> Anatomy:
    """As Qwen2, with q_norm and k_norm."""
    hidden, layers = reader.size("hidden_size"), reader.depth()
    attention, mlp = grouped_attention(reader, hidden, qk_norm=True), gated(reader)
    parameters = (
        projections(attention, hidden, bias=reader.flag("attention_bias"))
        + head_norms(attention.head_dim)
        + gated_mlp("mlp", hidden, mlp.intermediate)
        + two_norms(hidden)
    )

    def block(window: int) -> Block:
        return Block(parameters=parameters, norm=NormStyle.RMS, attention=replace(attention, window=window), mlp=mlp)

    return around(reader, hidden, blocks_of(qwen2.windows(reader, layers), block))


RECIPE = Recipe(build=build, defaults=DEFAULTS)
