"""What was computed in a row, in our own terms: method, precision, attention, checkpointing, kernels, parallelism."""

from __future__ import annotations

import re
from dataclasses import replace

from ..computation import AttentionImplementation, Kernels, effective_attention
from ..compute import model_flops_per_token
from ..frameworks import Framework, framework_of
from ..model import Block, Model
from ..parallel import Split, problems
from ..workload import Method, Precision
from .table import Measurement, Unsupported

FP32 = 4
METHODS = dict.fromkeys(("", "pretrain", "full-ft", "full", "sft"), Method.FULL) | {
    "lora": Method.LORA,
    "qlora": Method.QLORA,
}


FOUR_BIT = re.compile(r"nf4|fp4|int4 \(bnb\)", re.IGNORECASE)  # bitsandbytes packs all of them alike


def method_of(row: Measurement) -> Method:
    """What was trained.

    Raises:
        Unsupported: a method that is not modelled.
    """
    task = row.text("task").lower()
    if task not in METHODS:
        raise Unsupported(f"training method {task}")
    method = METHODS[task]
    quantized = row.text("quant_base")
    if quantized and not FOUR_BIT.match(quantized):
        raise Unsupported(f"base quantised as {quantized}")
    return Method.QLORA if method is Method.LORA and quantized else method


def computes_in_8_bit(row: Measurement) -> bool:
    """FP8, MXFP8, NVFP4: multiplications in 8 or 4 bits, on copies of weights and inputs."""
    text = row.text("precision").lower()
    return any(word in text for word in ("fp8", "fp4", "int8"))


def matmul_bits_of(row: Measurement) -> int:
    """Bits of the operands of a layer's multiplications; 0: as the precision.

    >>> from trainplan.planner.measurements.table import Measurement
    >>> matmul_bits_of(Measurement(line=2, texts={"precision": "NVFP4"}, numbers={}))
    4
    """
    if not computes_in_8_bit(row):
        return 0
    return 4 if "fp4" in row.text("precision").lower() else 8


def precision_of(row: Measurement) -> Precision:
    """The precision of weights and activations.

    Runs that multiply in 8 or 4 bits count as bf16: a weight and its transpose in 8 bits take the place of the 16-bit
    one (TransformerEngine's fp8 parameters), and so do saved inputs.
    """
    text = row.text("precision").lower()
    if computes_in_8_bit(row):
        return Precision.BF16
    return Precision.FP16 if "fp16" in text else Precision.FP32 if text.startswith("fp32") else Precision.BF16


def attention_of(row: Measurement, model: Model) -> AttentionImplementation:
    """Eager where the row says so."""
    eager = "eager" in row.text("attn_impl").lower()
    if framework_of(row.text("framework")).fused and not eager:
        return AttentionImplementation.FLASH  # its own kernels know sinks and soft caps
    return effective_attention(model, AttentionImplementation.EAGER if eager else AttentionImplementation.FLASH)


def checkpointing_of(row: Measurement) -> str:
    """The row's word for it: "none", "full", "selective", or a number of layers.

    Raises:
        Unsupported: words of another meaning.
    """
    text = row.text("act_ckpt").lower().split()
    if text and text[0] in ("selective", "sac"):
        return "selective"
    if text and text[0] == "gelu":
        return "none"  # llm.c computes an activation function again, beside which its bytes and time are small
    if text and (text[0] in ("none", "full", "no", "yes") or _is_count(text[0])):
        return {"no": "none", "yes": "full"}.get(text[0], text[0])
    raise Unsupported(f"activation checkpointing: {row.text('act_ckpt')[:40]}")


def _is_count(text: str) -> bool:
    """A plain number of ranks or layers."""
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST_COUNT


LONGEST_COUNT = 6  # digits


def checkpointed_layers(checkpointing: str, layers: int) -> int:
    """How many of a rank's layers.

    >>> checkpointed_layers("full", 8), checkpointed_layers("none", 8), checkpointed_layers("3", 8)
    (8, 0, 3)
    """
    if checkpointing in ("full", "selective"):
        return layers
    return 0 if checkpointing == "none" else min(layers, int(checkpointing))


def selectively_kept_bytes(model: Model, element: int, tokens: int) -> int:
    """What torch's selective checkpointing keeps of all layers besides their inputs.

        e (2 qd + kvd + f + h) + 4 a bytes per token: the attention's output with its row sums, and of the seven
        multiplications of a gated layer every other one: queries, values, gate, down

    Args:
        model: its blocks.
        element: e.
        tokens: T.

    Source:
        torchtitan distributed/activation_checkpoint.py, "op" policy: saves attention and every second mm.
    """
    return sum(
        tokens * layers * _selective_per_token(block, model.hidden, element) for block, layers in model.distinct_blocks
    )


def _selective_per_token(block: Block, hidden: int, element: int) -> int:
    attention, mlp = block.attention, block.mlp
    queries = attention.heads * attention.head_dim if attention else 0
    values = attention.kv_heads * attention.head_dim if attention else 0
    width = mlp.intermediate * max(1, mlp.experts_per_token) if mlp else 0
    return element * (2 * queries + values + width + hidden) + FP32 * (attention.heads if attention else 0)


def kernels_of(row: Measurement, framework: Framework, split: Split) -> Kernels:
    """The framework's implementation of layers and loss; torch.compile fuses norms and activations as well."""
    shards = split.tensor if split.sequence else 1
    return Kernels(
        fused=framework.fused or row.text("compile").lower().startswith(("yes", "torch.compile")),
        quantized_input=framework.quantized_input,
        sequence_shards=shards,
        context_shards=split.context,
        matmul_bits=matmul_bits_of(row),
        logit_bytes=framework.logit_bytes,
    )


def _sequence_parallel(row: Measurement) -> bool:
    """As stated, else the framework's habit."""
    stated = row.text("sp").lower()
    if stated in ("yes", "no"):
        return stated == "yes"
    return "TP+SP" in row.text("sharding") or framework_of(row.text("framework")).sequence_parallel


def split_of(row: Measurement, model: Model) -> Split:
    """How one copy of the model was cut.

    Raises:
        Unsupported: it cannot be cut so.
    """
    split = Split(
        tensor=row.whole("tp", 1),
        pipeline=row.whole("n_gpus", 1) if is_layer_split(row) else row.whole("pp", 1),
        virtual=_chunks(row, model),
        context=row.whole("cp", 1),
        expert=row.whole("ep", 1),
        sequence=row.whole("tp", 1) > 1 and _sequence_parallel(row),
    )
    if _is_count(row.text("sp")):
        split = replace(split, context=split.context * max(1, int(row.text("sp"))))
    found = problems(model, split)
    if found:
        raise Unsupported("; ".join(found))
    return split


def _chunks(row: Measurement, model: Model) -> int:
    """Model chunks of a pipeline rank: as stated, else the framework's habit."""
    stages = row.whole("pp", 1)
    if row.whole("vpp") or stages == 1 or model.layers % stages:
        return row.whole("vpp", 1)
    return model.layers // stages if framework_of(row.text("framework")).interleaved else 1


MODEL_FLOPS = "model flops"
CONVENTIONS_APART = 0.05  # at most, so that a printed rate need not say whether it counts attention whole or causal


def flops_per_token_of(row: Measurement, model: Model) -> float:
    """By which printed TFLOPs are tokens; 0 unless they are called model FLOPs and both conventions nearly agree."""
    if MODEL_FLOPS not in row.text("tflops_kind").lower():
        return 0.0
    whole = model_flops_per_token(model, row.whole("seq_len"))
    attention = whole - model_flops_per_token(model, 0)
    stated = "non-causal" in row.text("tflops_kind")
    return whole if stated or attention / 2 <= CONVENTIONS_APART * whole else 0.0


def loss_chunk_of(row: Measurement, framework: Framework) -> bool:
    """Whether the logits are made in chunks; a framework with a loss of its own says so itself."""
    words = row.text("chunked_ce").lower()
    return not framework.logit_bytes and any(word in words for word in ("yes", "liger", "chunked", "fused"))


def strategy_of(row: Measurement) -> str:
    """How the row was run, in a few words: "qlora, zero 3, offloaded, checkpointing"."""
    parallel = any(row.whole(name, 1) > 1 for name in ("tp", "pp", "cp", "ep"))
    parts = [
        row.text("task") or "training",
        f"zero {row.whole('zero_stage')}",
        *(("model-parallel",) if parallel else ()),
        *(("offloaded",) if row.text("offload").lower() not in ("", "none") else ()),
        *(("checkpointing",) if row.text("act_ckpt").lower().startswith("full") else ()),
    ]
    return ", ".join(parts)


def is_layer_split(row: Measurement) -> bool:
    """transformers' device_map: layers laid out over GPUs, one micro-batch at a time."""
    return "device_map" in row.text("sharding").lower()
