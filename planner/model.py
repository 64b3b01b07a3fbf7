"""What a transformer is made of, as far as memory and time are concerned.

Symbols used all over the planner: P parameters, L layers, h hidden size, f MLP intermediate size, a attention heads,
kv key-value heads, d head size, V vocabulary, s sequence length, b micro-batch (sequences), T = s*b tokens.

A model is listed tensor by tensor, as transformers would build it, so that parameter counts are exact and ZeRO's
padding, bucket and persistence rules can be applied to the very tensors that DeepSpeed will see.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property


class ParameterKind(Enum):
    """What a tensor is for; decides what LoRA adapts and what NF4 quantises."""

    LINEAR = "linear"  # weight of an nn.Linear (out, in) or of a GPT-2 Conv1D (in, out)
    EXPERTS = "experts"  # stacked expert weights, one 3-D nn.Parameter: neither peft nor bitsandbytes touches it
    EMBEDDING = "embedding"
    NORM = "norm"
    BIAS = "bias"
    OTHER = "other"  # convolution, state-space parameters, attention sinks, router tensors that are no nn.Linear


class AttentionKind(Enum):
    """How a block mixes tokens."""

    SOFTMAX = "softmax"  # MHA, GQA, MQA
    MLA = "mla"  # multi-head latent attention (DeepSeek V2/V3)


class NormStyle(Enum):
    """How a norm is written in transformers; the three keep different tensors for the backward pass."""

    RMS = "rms"  # Llama: weight * x.to(dtype)
    RMS_FP32 = "rms_fp32"  # Gemma, OLMo-2, gpt-oss: (weight * x) in fp32, then cast
    LAYER = "layer"


# Last names of the projections that end a module, in transformers 5.23.0: they read what the module computed.
ATTENTION_OUT = frozenset({"o_proj", "out_proj", "dense", "c_proj"})
MLP_OUT = frozenset({"down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h"})


class MlpKind(Enum):
    """Dense feed-forward shapes."""

    GATED = "gated"  # SwiGLU, GeGLU: gate, up, down
    PLAIN = "plain"  # up, down


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One tensor, by its transformers name inside the block (or inside the model) and its shape."""

    name: str
    shape: tuple[int, ...]
    kind: ParameterKind
    fan_in: int = 0  # LINEAR only: input features
    fan_out: int = 0  # LINEAR only: output features

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def linear(name: str, fan_in: int, fan_out: int, *, bias: bool = False) -> tuple[Parameter, ...]:
    """Weight (out, in) and optional bias of one nn.Linear.

    >>> [p.numel for p in linear("q_proj", 8, 16, bias=True)]
    [128, 16]
    """
    weight = Parameter(
        name=f"{name}.weight", shape=(fan_out, fan_in), kind=ParameterKind.LINEAR, fan_in=fan_in, fan_out=fan_out
    )
    if not bias:
        return (weight,)
    return (weight, Parameter(name=f"{name}.bias", shape=(fan_out,), kind=ParameterKind.BIAS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One block's attention."""

    kind: AttentionKind = AttentionKind.SOFTMAX
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys; MLA: nope + rope
    value_dim: int = 0  # 0: as head_dim
    window: int = 0  # sliding window in tokens; 0: full
    qk_norm: bool = False  # per-head norms of q and k (Qwen3, Gemma-3); OLMo-2's full-width norms too
    soft_cap: bool = False  # tanh soft-cap of the scores (Gemma-2): eager attention only
    sinks: bool = False  # learned attention sinks (gpt-oss): eager attention only
    fused_qkv: bool = False  # one projection for q, k and v (Phi-3, NeoX, GPT-2, BLOOM, Falcon, MPT)
    alibi: bool = False  # an additive position bias is materialised (BLOOM, MPT, Falcon-RW)
    q_lora_rank: int = 0  # MLA
    kv_lora_rank: int = 0  # MLA
    rope_dim: int = 0  # rotated part of the head; 0: no rotary embedding
    rope_concat: bool = False  # rotated and passed parts are concatenated though the whole head is rotated (Phi-3)
    dense_mask: bool = False  # a causal mask is handed to SDPA at any length (Falcon): its flash kernel refuses it
    eager_only: bool = False  # transformers has no SDPA path for it (BLOOM, MPT, GPT-J)
    fp32_scores: bool = False  # queries and keys are cast to fp32 before the scores (GPT-J)
    softmax_16bit: bool = False  # eager softmax in the training precision (GPT-2; with sinks too), not in fp32
    dropout: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp:
    """One block's feed-forward part; ``experts`` above 0 makes it a mixture."""

    kind: MlpKind
    activation: str  # "silu", "gelu" (one fused kernel), "gelu_new" (composite of six operations), "relu",
    # "gelu_bloom" (own autograd function), "swiglu_clamped" (gpt-oss)
    intermediate: int  # of the dense MLP, or of ONE expert
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate: int = 0  # of all always-active shared experts together
    router_fp32: bool = False  # the router computes in fp32 on its own copy of the input
    routing_fp32: bool = False  # fp32 routing weights scale the experts' outputs (Mixtral, DeepSeek); else bf16


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpace:
    """One block's Mamba mixer."""

    inner: int  # d_inner
    state: int  # N
    conv_kernel: int
    dt_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One decoder layer: its tensors and what its activations depend on."""

    parameters: tuple[Parameter, ...]
    norm: NormStyle
    norms: int = 2  # norms over the hidden size in this block (Gemma-2 and -3: 4)
    post_norm: bool = False  # OLMo-2: norms after the sub-layers only
    parallel_residual: bool = False  # NeoX, GPT-J, Phi, Falcon
    hidden_dropout: float = 0.0  # GPT-2, OPT
    fp32_residual: bool = False  # the residual is kept in fp32 from the first layer's output on (Mamba)
    attention: Attention | None = None
    mlp: Mlp | None = None
    ssm: StateSpace | None = None

    @property
    def numel(self) -> int:
        """Parameters of one such layer."""
        return sum(p.numel for p in self.parameters)


@dataclass(frozen=True, kw_only=True, eq=False)  # compared by identity: caches are keyed by model
class Model:
    """A model that can be trained: what transformers would build from its config.json."""

    name: str
    family: str  # transformers' model_type
    hidden: int
    vocab: int
    tied: bool  # lm_head shares the input embedding
    embedding: tuple[Parameter, ...]  # everything before the layers, in transformers' order
    blocks: tuple[Block, ...]  # one per layer; equal layers share one object
    head: tuple[Parameter, ...]  # final norm, and lm_head unless tied
    max_positions: int = 0  # 0: not limited by a table
    final_norm: NormStyle = NormStyle.RMS
    logits_soft_cap: bool = False
    expert_ranks: int = 1  # ranks over which each layer's experts are spread; the shapes are one rank's
    source: str = ""  # where the architecture was read: a file, a hub id, a catalog row, flags
    config: dict[str, object] = field(default_factory=dict, repr=False, compare=False, hash=False)  # config.json's keys

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Every tensor, named and ordered as in ``model.named_parameters()`` up to the modules' prefixes."""
        return self.embedding + tuple(p for block in self.blocks for p in block.parameters) + self.head

    @cached_property
    def parameter_count(self) -> int:
        """P, exact."""
        return sum(p.numel for p in self.parameters)

    @cached_property
    def distinct_blocks(self) -> tuple[tuple[Block, int], ...]:
        """Each different layer once, with how many there are, in order of first appearance."""
        counts: Counter[int] = Counter(id(b) for b in self.blocks)
        first: dict[int, Block] = {}
        for block in self.blocks:
            first.setdefault(id(block), block)
        return tuple((block, counts[key]) for key, block in first.items())

    @property
    def layers(self) -> int:
        """L."""
        return len(self.blocks)
