"""Axolotl: one YAML file, with the plan's ds_config.json."""

from __future__ import annotations

from typing import Any

from ...recipe import FINAL_RATE
from ...workload import Precision
from ..job import Job
from ..shell import HERE, bash, comments, environment, filled, joined, missing, model_of, rendezvous, script
from ..start import Emitted, Start
from ..trainers import Recompute, common_limits, hyperparameters, liger, recompute, schedule
from ..yaml_text import to_yaml
from .torchrun import launch

TITLE, NAME, CONFIG = "Axolotl", "axolotl.sh", "axolotl.yaml"
# Axolotl 0.19.0 packs with kernels that know where a sample ends; SDPA is none of them (schemas/enums.py).
PACKS = "flash_attention_2"


def emit(job: Job, start: Start) -> Emitted:
    """Axolotl's configuration and a script."""
    again = recompute(job, TITLE, can_offload=True)
    cannot = (*again.cannot, *common_limits(job), *_limits(job))
    several = (f"start it on each of the {job.machines.nodes} nodes, with the same MASTER_ADDR",)
    first = (
        "install Axolotl with its extra deepspeed; 0.19.0 pins transformers and DeepSpeed older than the plan's",
        *(several if job.several_nodes else ()),
    )
    words = [f"exec axolotl train {CONFIG} --launcher=torchrun --", launch(job)]
    lines = [
        HERE,
        *filled(missing(job, start), CONFIG),
        *rendezvous(job, rank=False),
        *environment(job),
        joined(words),
    ]
    where = "MASTER_ADDR=FIRST_NODE " if job.several_nodes else ""
    return Emitted(
        files={
            CONFIG: to_yaml(_config(job, start, again), comments(job, TITLE, cannot, first)),
            NAME: script(comments(job, TITLE, first=first), lines),
        },
        command=f"{where}{bash(job, start, NAME, told_first=False)}",
        cannot=cannot,
        first=first,
    )


def _limits(job: Job) -> tuple[str, ...]:
    found = []
    if job.packed and job.attention == "sdpa":
        found.append(f"packing with SDPA: {PACKS} is asked for, the same kernel from the package flash-attn")
    if job.packed and job.attention == "eager":
        found.append("packing with eager attention: sequences are padded instead, with fewer tokens in each step")
    return tuple(found)


def _config(job: Job, start: Start, again: Recompute) -> dict[str, Any]:
    packs = job.packed and job.attention == "sdpa"
    found: dict[str, Any] = {
        "base_model": model_of(job, start) or "SET-MODEL",
        "datasets": [{"path": start.data or "SET-DATA", "type": "completion", "field": "text"}],
        "dataset_prepared_path": "prepared",
        "val_set_size": 0.0,
        "sequence_len": job.seq_len,
        "sample_packing": packs,
        "pad_to_sequence_len": True,
        "attn_implementation": PACKS if packs else job.attention,
        **_adapters(job),
        "deepspeed": "ds_config.json",
        "micro_batch_size": job.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "save_strategy": "steps",
        "save_steps": job.save_every,
        "save_total_limit": 2,
        "auto_resume_from_checkpoints": True,
        "output_dir": "checkpoints",
        "bf16": job.precision is Precision.BF16,
        "fp16": job.precision is Precision.FP16,
        "tf32": False,
        "max_grad_norm": job.ds_config.get("gradient_clipping", 0.0),
        **_optimizer(job),
        "lr_scheduler": "cosine",
        "cosine_min_lr_ratio": FINAL_RATE,
        "warmup_steps": schedule(job)["warmup_steps"],
        "gradient_checkpointing": again.on,
        "torch_compile": job.compile,
    }
    if again.on:
        found["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if again.on_host:
        found["activation_offloading"] = "hidden_states"
    return {**found, **_kernels(job)}


def _optimizer(job: Job) -> dict[str, Any]:
    """Axolotl's name of the optimizer's key."""
    named = hyperparameters(job)
    return {"optimizer": named.pop("optim"), **named}


def _adapters(job: Job) -> dict[str, Any]:
    if job.adapters is None:
        return {}
    a = job.adapters
    found: dict[str, Any] = {
        "adapter": "lora" if job.quantization is None else "qlora",
        "load_in_4bit": job.quantization is not None,
        "lora_r": a.rank,
        "lora_alpha": round(a.alpha) if float(a.alpha).is_integer() else a.alpha,
        "lora_dropout": a.dropout,
        "peft_autocast_adapter_dtype": False,
        **({"lora_target_modules": list(a.modules)} if a.modules else {"lora_target_linear": True}),
    }
    if job.quantization is not None:
        q = job.quantization
        storage = {Precision.BF16: "bfloat16", Precision.FP16: "float16", Precision.FP32: "float32"}
        found["bnb_config_kwargs"] = {
            "bnb_4bit_quant_type": q.quant_type,
            "bnb_4bit_use_double_quant": q.double_quant,
            "bnb_4bit_compute_dtype": storage[q.compute],
            "bnb_4bit_quant_storage": storage[q.storage],
        }
    return found


def _kernels(job: Job) -> dict[str, Any]:
    kernels = liger(job)
    if kernels is None:
        return {}
    return {
        "plugins": ["axolotl.integrations.liger.LigerPlugin"],
        "liger_rope": kernels["rope"],
        "liger_rms_norm": kernels["rms_norm"],
        "liger_glu_activation": kernels["swiglu"],
        "liger_fused_linear_cross_entropy": kernels["fused_linear_cross_entropy"],
    }
