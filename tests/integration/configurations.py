"""Plans of tiny models for two GPUs, and the ds_config each emits: one for every class of strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trainplan
from trainplan.api.estimating import Estimate
from trainplan.planner.architectures import build_model
from trainplan.planner.model import Model

from .engine import Lora, TinyModel

GPUS = 2
SEQUENCE_TOKENS = 64
GLOBAL_BATCH = 4  # 2 GPUs x micro-batch 1 x 2 micro-steps

# Larger than the smallest reduce bucket of a plan (1e6 elements), so that buckets fill, close and overlap.
LLAMA: Mapping[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "intermediate_size": 688,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # stages would draw other masks
GPT2: Mapping[str, Any] = {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 512, "n_positions": 128} | NO_DROPOUT
MODELS: Mapping[str, TinyModel] = {
    "llama": TinyModel(family="llama", config=LLAMA),
    "gpt2": TinyModel(family="gpt2", config=GPT2),
    "gemma": TinyModel(family="gemma", config={**LLAMA, "head_dim": 64, "tie_word_embeddings": True}),
    "qwen2": TinyModel(family="qwen2", config=LLAMA),
    "mixtral": TinyModel(family="mixtral", config={**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
LORA = Lora()
LORA_OPTIONS: Mapping[str, Any] = {"method": "lora", "lora_rank": LORA.rank, "lora_targets": LORA.targets}

CLASSES: Mapping[str, Mapping[str, Any]] = {
    "zero0": {"zero": 0},
    "zero1": {"zero": 1},
    "zero2": {"zero": 2},
    "zero3": {"zero": 3},
    "zero1-offload-optimizer": {"zero": 1, "offload_optimizer": "cpu"},
    "zero2-offload-optimizer": {"zero": 2, "offload_optimizer": "cpu"},
    "zero3-offload-optimizer": {"zero": 3, "offload_optimizer": "cpu"},
    "zero3-offload-share": {"zero": 3, "offload_optimizer": "cpu", "offload_ratio": 0.6},
    "zero3-offload-parameters": {"zero": 3, "offload_parameters": "cpu"},
    "zero3-offload-both": {"zero": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    "zero3-offload-share-and-parameters": {
        "zero": 3,
        "offload_optimizer": "cpu",
        "offload_ratio": 0.6,
        "offload_parameters": "cpu",
    },
    "zero0-checkpointing": {"zero": 0, "checkpointing": 3},
    "zero2-checkpointing": {"zero": 2, "checkpointing": 3},
    "zero3-checkpointing": {"zero": 3, "checkpointing": 3},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a plan hands to a job: the ds_config, and what the training script does itself."""

    model: TinyModel
    ds_config: Mapping[str, Any]
    checkpointed_layers: int
    trainable: int  # elements that the plan's ledger trains
    facts: Mapping[str, object]  # what its strategies state


def estimated(model: Model, **options: Any) -> Estimate:
    """The estimate of a tiny model on two GPUs of one node."""
    return trainplan.estimate(
        model,
        gpus=f"{GPUS}xa100-80",
        price=1.0,
        gpus_per_node=GPUS,
        host_memory_gib=64,
        global_batch=GLOBAL_BATCH,
        seq_len=SEQUENCE_TOKENS,
        **options,
    )


def planned(family: str = "llama", **options: Any) -> Planned:
    """The plan of a tiny model on two GPUs of one node, by `trainplan.estimate` with these options."""
    return planned_for(MODELS[family], **options)


def planned_for(tiny: TinyModel, **options: Any) -> Planned:
    """The same of any model small enough."""
    model = build_model({"model_type": tiny.family, **tiny.config}, name=f"tiny-{tiny.family}", source="tests")
    found = estimated(model, **options)
    return Planned(
        model=tiny,
        ds_config=found.ds_config,
        checkpointed_layers=found.candidate.layers,
        trainable=found.candidate.ledger.trainable.total,
        facts=found.candidate.stack.facts,
    )
