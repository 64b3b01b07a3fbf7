"""What one GPU computes in a step, apart from how states are stored: the choices that shape activations and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .model import Attention, Block, Model, Parameter, ParameterKind
from .workload import Precision


class AttentionImplementation(Enum):
    """transformers' ``attn_implementation``; SDPA picks its kernel by mask, head size and dtype."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    FLASH = "flash"  # flash_attention_2, or SDPA's flash kernel
    EAGER = "eager"  # materialised s x s scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """LoRA adapters: rank r, on every nn.Linear of the blocks or on those whose last name is in ``targets``."""

    rank: int = 16
    targets: tuple[str, ...] = ()  # (): every linear layer
    dropout: float = 0.0

    def adapted(self, block: Block) -> tuple[Parameter, ...]:
        """The weights of this block that get an adapter: nn.Linear only, as peft does."""
        return tuple(
            p
            for p in block.parameters
            if p.kind is ParameterKind.LINEAR and (not self.targets or module_name(p) in self.targets)
        )


def module_name(weight: Parameter) -> str:
    """The last name of the module a weight belongs to: "q_proj" of "self_attn.q_proj.weight"."""
    return weight.name.split(".")[-2]


def default_targets(model: Model) -> tuple[str, ...]:
    """What adapters go on where the user names nothing: every linear layer, or in mixtures the attention's alone.

    peft 0.21.2 treats stacked experts and routers in a way of its own under "all-linear" (twice the rank, dense MLPs
    left out), so that a mixture's adapters are named one by one instead. Of Mamba-1's projections it refuses out_proj,
    and the mixer's fused function reads the weights of the others itself, so that their adapters would learn nothing.

    Source:
        peft 0.21.2 tuners/tuners_utils.py ``_check_lora_target_modules_mamba``; transformers 5.23.0
        models/mamba/modeling_mamba.py ``MambaMixer.forward``.
    """
    blocks = [block for block, _ in model.distinct_blocks]
    if all(block.ssm is not None and block.mlp is None for block in blocks):
        return ("in_proj",)
    if not any(p.kind is ParameterKind.EXPERTS for block in blocks for p in block.parameters):
        return ()
    linear = (p for block in blocks for p in block.parameters if p.kind is ParameterKind.LINEAR)
    return tuple(dict.fromkeys(module_name(p) for p in linear if "attn" in p.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Whose implementation runs: transformers' own modules by default, or fused kernels of a training framework.

    Args:
        fused: norms keep their input as it came, gated activations gate and up alone (Transformer Engine, Apex, Liger).
        quantized_input: 4-bit layers keep their input for the backward pass (bitsandbytes before 0.43).
        sequence_shards: ranks over which norms and residuals are cut (Megatron's sequence parallelism).
        context_shards: ranks over which each sequence is cut (context parallelism); queries meet the keys of all.
        matmul_bits: the blocks' multiplications convert their operands to so many bits (FP8, MXFP8, NVFP4); 0: none do.
        logit_bytes: of each logit while the loss is computed, between forward and backward, and in its backward;
            (): transformers' own cross-entropy.
    """

    fused: bool = False
    quantized_input: bool = False
    sequence_shards: int = 1
    context_shards: int = 1
    matmul_bits: int = 0
    logit_bytes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Computation:
    """The part of a stack that decides activations and compute; strategies replace its fields."""

    precision: Precision = Precision.BF16
    adapters: Adapters | None = None  # None: every parameter is trained
    quantized: bool = False  # base nn.Linear weights of the blocks in NF4
    attention: AttentionImplementation = AttentionImplementation.FLASH
    checkpointed_layers: int = 0  # the FIRST k of L layers keep only their input
    checkpoints_on_host: bool = False
    loss_chunk: int = 0  # tokens per chunk of the cross-entropy; 0: all logits at once, as transformers does
    padded: bool = False  # sequences of unequal length with a mask; False: packed, all of them full
    kernels: Kernels = field(default=Kernels(), hash=False)  # whose implementation of the layers runs
    liger: bool = False  # Liger's norms, rotary embeddings and gates: time alone, memory stays what eager kernels need
    compiled: bool = False  # torch.compile: likewise


def effective_attention(model: Model, chosen: AttentionImplementation) -> AttentionImplementation:
    """Eager where the model leaves no choice (soft-cap, sinks, no SDPA path), else what was chosen."""
    forced = any(_needs_eager(block.attention) for block, _ in model.distinct_blocks)
    return AttentionImplementation.EAGER if forced else chosen


def _needs_eager(attention: Attention | None) -> bool:
    return attention is not None and (attention.soft_cap or attention.sinks or attention.eager_only)
