"""Hugging Face's Trainer: TrainingArguments with the plan's ds_config.json, whose values it checks against its own."""

from __future__ import annotations

from typing import Any

from ...workload import Precision
from ..job import Job
from ..scripts import job_script
from ..shell import bash, beside, comments, environment, joined, model_of, option, rendezvous, script
from ..start import Emitted, Start
from ..trainers import batch_and_steps, common_limits, liger, precision_and_optimizer
from ..yaml_text import to_yaml
from .torchrun import launch

TITLE, NAME, CONFIG, SCRIPT = "Hugging Face's Trainer", "transformers.sh", "training_arguments.yaml", "hf_trainer.py"
TORCH = {Precision.BF16: "bfloat16", Precision.FP16: "float16", Precision.FP32: "float32"}


def emit(job: Job, start: Start) -> Emitted:
    """Arguments, the script that reads them, and its command."""
    cannot = common_limits(job)
    nodes = f"start it on each of the {job.machines.nodes} nodes, with the same MASTER_ADDR, the name of one of them"
    first = (nodes,) if job.several_nodes else ()
    words = [
        f"exec torchrun {launch(job)}",
        f"{SCRIPT} {CONFIG}",
        option("data", start.data, "DATA"),
        option("model", model_of(job, start), "MODEL"),
        '"--out=${OUT:-checkpoints}"',
        '"$@"',
    ]
    lines = [*beside(job, start), *rendezvous(job, rank=False), *environment(job), joined(words)]
    where = "MASTER_ADDR=FIRST_NODE " if job.several_nodes else ""
    return Emitted(
        files={
            CONFIG: to_yaml({**_settings(job), **arguments(job)}, comments(job, TITLE, cannot)),
            SCRIPT: job_script(SCRIPT),
            NAME: script(comments(job, TITLE, cannot, first), lines),
        },
        command=f"{where}{bash(job, start, NAME)}",
        cannot=cannot,
        first=first,
    )


def arguments(job: Job) -> dict[str, Any]:
    """transformers.TrainingArguments; those that DeepSpeed's file states too are equal to it."""
    found: dict[str, Any] = {
        "output_dir": "checkpoints",
        **batch_and_steps(job),
        **precision_and_optimizer(job),
        "activation_checkpointing": job.checkpointing.layers > 0,
        "torch_compile": job.compile,
    }
    if job.checkpointing.layers:
        found["activation_checkpointing_kwargs"] = {"use_reentrant": False, "offload": job.checkpointing.on_host}
    kernels = liger(job)
    return found if kernels is None else {**found, "use_liger_kernel": True, "liger_kernel_config": kernels}


def _settings(job: Job) -> dict[str, Any]:
    """What the script reads beside them."""
    found: dict[str, Any] = {
        "dtype": TORCH[job.precision],
        "attn_implementation": job.attention,
        "seq_len": job.seq_len,
        "packing": job.packed,
        "checkpointed_layers": job.checkpointing.layers,
    }
    if job.adapters is not None:
        found |= {
            "lora_rank": job.adapters.rank,
            "lora_alpha": float(job.adapters.alpha),
            "lora_dropout": job.adapters.dropout,
            "lora_target_modules": list(job.adapters.modules) or ["all-linear"],
        }
    if job.quantization is not None:
        found |= {
            "quant_type": job.quantization.quant_type,
            "double_quant": job.quantization.double_quant,
            "quant_compute_dtype": TORCH[job.quantization.compute],
            "quant_storage_dtype": TORCH[job.quantization.storage],
        }
    return found
