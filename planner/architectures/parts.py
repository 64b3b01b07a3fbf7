"""The modules that transformers' models are made of, each as the tensors it registers, in its own order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ..model import Attention, Block, Mlp, MlpKind, NormStyle, Parameter, ParameterKind, linear
from .reader import Reader

Tensors = tuple[Parameter, ...]
Kind = TypeVar("Kind", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """A model's tensors and shape, before it has a name."""

    hidden: int
    vocab: int
    tied: bool
    embedding: Tensors
    blocks: tuple[Block, ...]
    head: Tensors
    max_positions: int = 0
    final_norm: NormStyle = NormStyle.RMS
    logits_soft_cap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One ``model_type``: how its model is built, and what transformers assumes where config.json is silent."""

    build: Callable[[Reader], Anatomy]
    defaults: Mapping[str, object]  # of transformers 5.23.0's configuration class
    synonyms: Mapping[str, str] = field(default_factory=dict)  # other name -> key


def tensor(name: str, *shape: int, kind: ParameterKind = ParameterKind.OTHER) -> Tensors:
    """One tensor.

    >>> tensor("mixer.D", 8)[0].numel
    8
    """
    return (Parameter(name=name, shape=shape, kind=kind),)


def embedding(name: str, rows: int, width: int) -> Tensors:
    """nn.Embedding."""
    return tensor(f"{name}.weight", rows, width, kind=ParameterKind.EMBEDDING)


def rms_norm(name: str, width: int) -> Tensors:
    """An RMS norm, or a layer norm without bias: one weight."""
    return tensor(f"{name}.weight", width, kind=ParameterKind.NORM)


def layer_norm(name: str, width: int) -> Tensors:
    """nn.LayerNorm: weight and bias."""
    return rms_norm(name, width) + tensor(f"{name}.bias", width, kind=ParameterKind.NORM)


def conv1d_linear(name: str, fan_in: int, fan_out: int) -> Tensors:
    """GPT-2's Conv1D: a linear layer whose weight is (in, out), always with a bias.

    Source:
        transformers 5.23.0 pytorch_utils.py, ``Conv1D``.
    """
    weight = Parameter(
        name=f"{name}.weight", shape=(fan_in, fan_out), kind=ParameterKind.LINEAR, fan_in=fan_in, fan_out=fan_out
    )
    return (weight, *tensor(f"{name}.bias", fan_out, kind=ParameterKind.BIAS))


def gated_mlp(prefix: str, hidden: int, intermediate: int, *, bias: bool = False) -> Tensors:
    """gate_proj, up_proj, down_proj."""
    return (
        linear(f"{prefix}.gate_proj", hidden, intermediate, bias=bias)
        + linear(f"{prefix}.up_proj", hidden, intermediate, bias=bias)
        + linear(f"{prefix}.down_proj", intermediate, hidden, bias=bias)
    )


def experts(prefix: str, count: int, hidden: int, intermediate: int) -> Tensors:
    """All experts of a layer in two stacked tensors.

    Source:
        transformers 5.23.0 models/mixtral/modeling_mixtral.py, ``MixtralExperts``.
    """
    return tensor(f"{prefix}.gate_up_proj", count, 2 * intermediate, hidden, kind=ParameterKind.EXPERTS) + tensor(
        f"{prefix}.down_proj", count, hidden, intermediate, kind=ParameterKind.EXPERTS
    )


def projections(attention: Attention, hidden: int, *, bias: bool = False, out_bias: bool | None = None) -> Tensors:
    """q_proj, k_proj, v_proj and o_proj of ``self_attn``; ``out_bias`` where o_proj differs from the others."""
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    return (
        linear("self_attn.q_proj", hidden, queries, bias=bias)
        + linear("self_attn.k_proj", hidden, keys, bias=bias)
        + linear("self_attn.v_proj", hidden, keys, bias=bias)
        + linear("self_attn.o_proj", queries, hidden, bias=bias if out_bias is None else out_bias)
    )


def two_norms(hidden: int) -> Tensors:
    """input_layernorm and post_attention_layernorm, as Llama names them."""
    return rms_norm("input_layernorm", hidden) + rms_norm("post_attention_layernorm", hidden)


def head_norms(head_dim: int) -> Tensors:
    """q_norm and k_norm over one head."""
    return rms_norm("self_attn.q_norm", head_dim) + rms_norm("self_attn.k_norm", head_dim)


def lm_head(hidden: int, vocab: int, *, tied: bool) -> Tensors:
    """The output projection, or nothing where it is the input embedding."""
    return () if tied else linear("lm_head", hidden, vocab)


def blocks_of(kinds: Iterable[Kind], make: Callable[[Kind], Block]) -> tuple[Block, ...]:
    """One block per layer; layers of one kind share one object."""
    made: dict[Kind, Block] = {}
    return tuple(made[kind] if kind in made else made.setdefault(kind, make(kind)) for kind in kinds)


def grouped_attention(reader: Reader, hidden: int, *, window: int = 0, qk_norm: bool = False) -> Attention:
    """Softmax attention with rotary embeddings over whole heads, as in Llama and its kin."""
    heads = reader.heads(hidden)
    head_dim = reader.head_dim(hidden, heads)
    return Attention(
        heads=heads,
        kv_heads=reader.kv_heads(heads),
        head_dim=head_dim,
        rope_dim=head_dim,
        window=window,
        qk_norm=qk_norm,
        dropout=reader.probability("attention_dropout"),
    )


def gated(reader: Reader, *, activation: str = "hidden_act") -> Mlp:
    """A dense gated MLP."""
    return Mlp(
        kind=MlpKind.GATED, activation=reader.activation(activation), intermediate=reader.size("intermediate_size")
    )


def mixture(reader: Reader, *, count: str, intermediate: str) -> Mlp:
    """A mixture of gated experts, from the keys that hold their number and their width."""
    number = reader.size(count)
    return Mlp(
        kind=MlpKind.GATED,
        activation=reader.activation(),
        intermediate=reader.size(intermediate),
        experts=number,
        experts_per_token=reader.size("num_experts_per_tok", most=number),
    )


def plain_mlp(reader: Reader, *, activation: str, intermediate: int) -> Mlp:
    """A dense MLP of two projections."""
    return Mlp(kind=MlpKind.PLAIN, activation=reader.activation(activation), intermediate=intermediate)


def around(
    reader: Reader, hidden: int, blocks: tuple[Block, ...], *, norm: NormStyle = NormStyle.RMS, soft_cap: bool = False
) -> Anatomy:
    """Blocks between ``embed_tokens`` and ``norm`` and ``lm_head``: the outside of every Llama-like model."""
    vocab, tied = reader.size("vocab_size"), reader.flag("tie_word_embeddings")
    final = layer_norm("norm", hidden) if norm is NormStyle.LAYER else rms_norm("norm", hidden)
    return Anatomy(
        hidden=hidden,
        vocab=vocab,
        tied=tied,
        embedding=embedding("embed_tokens", vocab, hidden),
        blocks=blocks,
        head=final + lm_head(hidden, vocab, tied=tied),
        max_positions=reader.size("max_position_embeddings"),
        final_norm=norm,
        logits_soft_cap=soft_cap,
    )
