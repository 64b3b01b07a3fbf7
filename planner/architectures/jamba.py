"""Jamba: Mamba mixers with an attention layer now and then, experts in every other layer.

Source:
    transformers 5.23.0 models/jamba/modeling_jamba.py, configuration_jamba.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..model import Block, Mlp, NormStyle, StateSpace
from .mamba import mixer, rank_of
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
    rms_norm,
    tensor,
)
from .reader import Reader

DEFAULTS = {
    "vocab_size": 65536,
    "tie_word_embeddings": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 262144,
    "attention_dropout": 0.0,
    "num_experts_per_tok": 2,
    "num_experts": 16,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


def every(reader: Reader, which: str, layers: int) -> tuple[bool, ...]:
    """Layers whose number leaves the offset when divided by the period."""
    period, offset = reader.size(f"{which}_layer_period"), reader.size(f"{which}_layer_offset", least=0)
    if offset >= period > 1:
        reader.refuse(f"{which}_layer_offset", offset, f"a number below the period {period}")
    return tuple(i % period == offset for i in range(layers))


def state_space(reader: Reader, hidden: int) -> StateSpace:
    """The Mamba mixer's sizes."""
    return StateSpace(
        inner=reader.size("mamba_expand") * hidden,
        state=reader.size("mamba_d_state"),
        conv_kernel=reader.size("mamba_d_conv"),
        dt_rank=rank_of(reader, "mamba_dt_rank", hidden),
    )


def mamba_tensors(reader: Reader, hidden: int, ssm: StateSpace) -> Tensors:
    """Mamba's mixer, and norms of the time step, B and C."""
    biases = {"bias": reader.flag("mamba_proj_bias"), "conv_bias": reader.flag("mamba_conv_bias")}
    return (
        mixer("mamba", hidden, ssm, **biases)
        + rms_norm("mamba.dt_layernorm", ssm.dt_rank)
        + rms_norm("mamba.b_layernorm", ssm.state)
        + rms_norm("mamba.c_layernorm", ssm.state)
    )


def feed_forward(hidden: int, mlp: Mlp) -> Tensors:
    """A dense MLP, or a router and its experts."""
    if not mlp.experts:
        return gated_mlp("feed_forward", hidden, mlp.intermediate)
    return tensor("feed_forward.router.weight", mlp.experts, hidden) + experts(
        "feed_forward.experts", mlp.experts, hidden, mlp.intermediate
    )


def build(reader: Reader) -> Anatomy:
    """No rotary embedding; a layer differs by its mixer and by its MLP."""
    hidden, layers = reader.size("hidden_size"), reader.depth()
    attention = replace(grouped_attention(reader, hidden), rope_dim=0)
    ssm, dense = state_space(reader, hidden), gated(reader)
    many = mixture(reader, count="num_experts", intermediate="intermediate_size")
    mixers = {True: projections(attention, hidden), False: mamba_tensors(reader, hidden, ssm)}
    norms = rms_norm("input_layernorm", hidden) + rms_norm("pre_ff_layernorm", hidden)

    def block(kind: tuple[bool, bool]) -> Block:
        attends, has_experts = kind
        mlp = many if has_experts and many.experts > 1 else dense
        return Block(
            parameters=mixers[attends] + feed_forward(hidden, mlp) + norms,
            norm=NormStyle.RMS,
            attention=attention if attends else None,
            ssm=None if attends else ssm,
            mlp=mlp,
        )

    kinds = zip(every(reader, "attn", layers), every(reader, "expert", layers), strict=True)
    anatomy = around(reader, hidden, blocks_of(kinds, block))
    return replace(anatomy, head=rms_norm("final_layernorm", hidden) + anatomy.head[1:])


RECIPE = Recipe(build=build, defaults=DEFAULTS, synonyms={"num_local_experts": "num_experts"})
