"""What only the training script can do: the part of a plan that no key of ds_config.json says."""

from __future__ import annotations

from typing import Any

from ..candidate import Candidate
from ..compatibility import pinned
from ..computation import AttentionImplementation
from ..models import catalog
from ..recipe import adamw_parameters

# transformers' ``attn_implementation``; SDPA takes its flash kernel where no mask is handed over, and needs no package.
ATTENTION = {AttentionImplementation.FLASH: "sdpa", AttentionImplementation.EAGER: "eager"}
QUANT_BLOCK = 64  # elements that share one scale; bitsandbytes' own choice for NF4, which no option changes


def training_document(c: Candidate) -> dict[str, Any]:
    """What the training script reads beside ds_config.json: the model, what recomputes, the loss, when to save."""
    computation, workload = c.ledger.computation, c.setting.workload
    return {
        "model": hub_id(workload.model.name),
        "precision": computation.precision.value,
        "attn_implementation": ATTENTION[computation.attention],
        "packed": not computation.padded,
        "seq_len": workload.seq_len,
        "global_batch": workload.global_batch,
        "steps": workload.steps,
        "checkpointing": {
            "layers": computation.checkpointed_layers,
            "of": workload.model.layers,
            "on_host": computation.checkpoints_on_host,
        },
        "loss_chunk_tokens": computation.loss_chunk,
        "zero_init": c.zero_stage == 3 and c.ledger.zero_init,
        "quantization": _quantization(c),
        "optimizer": _optimizer(c),
        "liger": computation.liger,
        "compile": computation.compiled,
        "save_every_steps": save_every_steps(c),
        "versions": dict(pinned()),  # what the ledger was compared with, and the emitted files were run with
    }


def hub_id(name: str) -> str | None:
    """Where the weights of a catalog model lie: the first of its Hugging Face ids, which is the base model's.

    >>> hub_id("Llama-3-8B"), hub_id("my-own")
    ('meta-llama/Meta-Llama-3-8B', None)
    """
    row = catalog().get(name)
    return row.hub[0] if row and row.hub else None


def save_every_steps(c: Candidate) -> int:
    """Optimizer steps between two checkpoints: the run's interval, in whole steps."""
    step_h = c.cost.run.steps_h / c.setting.workload.steps
    return max(1, min(c.setting.workload.steps, round(c.cost.run.interval_h / step_h)))


def _optimizer(c: Candidate) -> dict[str, Any]:
    """Hyperparameters stand in ds_config.json; an optimizer that DeepSpeed does not have is made of these instead."""
    name, adapters = c.ledger.optimizer.name, c.ledger.computation.adapters is not None
    if c.ledger.optimizer.deepspeed is not None:
        return {"name": name, "from": "ds_config"}
    return {"name": name, "from": "script", **adamw_parameters(adapters=adapters)}


def _quantization(c: Candidate) -> dict[str, Any] | None:
    """What transformers.BitsAndBytesConfig must be given; the storage type is what ZeRO-3 can cut."""
    if not c.ledger.computation.quantized:
        return None
    precision = c.ledger.computation.precision.value
    return {
        "quant_type": "nf4",
        "double_quant": True,
        "block_size": QUANT_BLOCK,
        "compute_dtype": precision,
        "storage_dtype": precision,
    }
