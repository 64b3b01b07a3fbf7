"""Qwen1.5-MoE and Qwen2-MoE: Qwen2's attention, experts in some layers, one shared expert behind its own gate.

Source:
    transformers 5.23.0 models/qwen2_moe/modeling_qwen2_moe.py, configuration_qwen2_moe.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Attention, Block, Mlp, NormStyle, linear
from .parts import (
    Anatomy,
    Recipe,
    Tensors,
    around,
    blocks_of,
    experts,
    gated,
    gated_mlp,
    grouped_attention,
    mixture,
    projections,
    tensor,
    two_norms,
)
from .reader import Reader

DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts_per_tok": 4,
    "num_experts": 60,
    "mlp_only_layers": None,
    "qkv_bias": True,
}


def sparse(reader: Reader, layers: int) -> tuple[bool, ...]:
    """For each layer whether it has experts: every ``decoder_sparse_step``-th, less ``mlp_only_layers``."""
    step, dense = reader.size("decoder_sparse_step"), reader.layer_numbers("mlp_only_layers")
    return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))


def windows(reader: Reader, layers: int) -> tuple[int, ...]:
    """Each layer's window: every other one below ``max_window_layers``, where ``use_sliding_window`` is set."""
    window = reader.window() if reader.flag("use_sliding_window") else 0
    below = reader.size("max_window_layers", least=0)
    slides = reader.sliding(layers, tuple(i % 2 == 0 and i < below for i in range(layers)))
    return tuple(window if s else 0 for s in slides)


def sparse_mlp(hidden: int, mlp: Mlp) -> Tensors:
    """Router, experts, shared expert, its gate."""
    return (
        tensor("mlp.gate.weight", mlp.experts, hidden)
        + experts("mlp.experts", mlp.experts, hidden, mlp.intermediate)
        + gated_mlp("mlp.shared_expert", hidden, mlp.shared_intermediate)
        + linear("mlp.shared_expert_gate", hidden, 1)
    )


def build(reader: Reader) -> Anatomy:
    """A layer differs by its window and by whether it has experts."""
    hidden, layers = reader.size("hidden_size"), reader.depth()
    attention, dense = grouped_attention(reader, hidden), gated(reader)
    many = mixture(reader, count="num_experts", intermediate="moe_intermediate_size")
    many = replace(many, shared_intermediate=reader.size("shared_expert_intermediate_size"))
    projected = projections(attention, hidden, bias=reader.flag("qkv_bias"), out_bias=False)
    attentions: dict[int, Attention] = {w: replace(attention, window=w) for w in windows(reader, layers)}

    def block(kind: tuple[int, bool]) -> Block:
        window, has_experts = kind
        inner = sparse_mlp(hidden, many) if has_experts else gated_mlp("mlp", hidden, dense.intermediate)
        return Block(
            parameters=projected + inner + two_norms(hidden),
            norm=NormStyle.RMS,
            attention=attentions[window],
            mlp=many if has_experts else dense,
        )

    kinds = zip(windows(reader, layers), sparse(reader, layers), strict=True)
    return around(reader, hidden, blocks_of(kinds, block))


RECIPE = Recipe(build=build, defaults=DEFAULTS)
