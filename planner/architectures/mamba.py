"""Mamba 1: a state-space mixer after one norm, no attention and no MLP.

Source:
    transformers 5.23.0 models/mamba/modeling_mamba.py, configuration_mamba.py.
"""

from __future__ import annotations

from ..model import Block, NormStyle, ParameterKind, StateSpace, linear
from .parts import Anatomy, Recipe, Tensors, embedding, lm_head, rms_norm, tensor
from .reader import Reader

DEFAULTS = {
    "vocab_size": 50280,
    "hidden_size": 768,
    "state_size": 16,
    "num_hidden_layers": 32,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": "auto",
    "residual_in_fp32": True,
    "intermediate_size": None,
    "tie_word_embeddings": True,
}
HIDDEN_PER_RANK = 16  # time_step_rank "auto": configuration_mamba.py, ``__post_init__``


def rank_of(reader: Reader, key: str, hidden: int) -> int:
    """Rank of the time step's projection; "auto" is ceil(h / 16)."""
    return -(-hidden // HIDDEN_PER_RANK) if reader.value(key) == "auto" else reader.size(key)


def mixer(prefix: str, hidden: int, ssm: StateSpace, *, bias: bool, conv_bias: bool) -> Tensors:
    """The mixer's own parameters, then its modules'."""
    convolution_bias = tensor(f"{prefix}.conv1d.bias", ssm.inner, kind=ParameterKind.BIAS) if conv_bias else ()
    return (
        tensor(f"{prefix}.A_log", ssm.inner, ssm.state)
        + tensor(f"{prefix}.D", ssm.inner)
        + tensor(f"{prefix}.conv1d.weight", ssm.inner, 1, ssm.conv_kernel)
        + convolution_bias
        + linear(f"{prefix}.in_proj", hidden, 2 * ssm.inner, bias=bias)
        + linear(f"{prefix}.x_proj", ssm.inner, ssm.dt_rank + 2 * ssm.state)
        + linear(f"{prefix}.dt_proj", ssm.dt_rank, ssm.inner, bias=True)
        + linear(f"{prefix}.out_proj", ssm.inner, hidden, bias=bias)
    )


def build(reader: Reader) -> Anatomy:
    """``intermediate_size``, where given, wins over ``expand``."""
    hidden, vocab, tied = reader.size("hidden_size"), reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    ssm = StateSpace(
        inner=reader.size_or("intermediate_size", reader.size("expand") * hidden),
        state=reader.size("state_size"),
        conv_kernel=reader.size("conv_kernel"),
        dt_rank=rank_of(reader, "time_step_rank", hidden),
    )
    biases = {"bias": reader.flag("use_bias"), "conv_bias": reader.flag("use_conv_bias")}
    wide = reader.flag("residual_in_fp32")
    block = Block(
        parameters=rms_norm("norm", hidden) + mixer("mixer", hidden, ssm, **biases),
        norm=NormStyle.RMS,
        norms=1,
        fp32_residual=wide,
        ssm=ssm,
    )
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("embeddings", vocab, hidden),
        blocks=(block,) * reader.depth(),
        head=rms_norm("norm_f", hidden) + lm_head(hidden, vocab, tied=tied),
        final_norm=NormStyle.RMS_FP32 if wide else NormStyle.RMS,  # it reads the residual as it is
    )


RECIPE = Recipe(build=build, defaults=DEFAULTS)
