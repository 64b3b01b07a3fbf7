"""LLaMA-Factory: one YAML file, a list of its datasets, and the plan's ds_config.json."""

from __future__ import annotations

import os.path
from typing import Any

from ..deepspeed import to_json
from ..job import Job
from ..shell import HERE, bash, comments, environment, filled, missing, model_of, rendezvous, script
from ..start import Emitted, Start
from ..trainers import batch_and_steps, common_limits, liger, precision_and_optimizer, recompute
from ..yaml_text import to_yaml

TITLE, NAME, CONFIG, DATASETS = "LLaMA-Factory", "llamafactory.sh", "llamafactory.yaml", "dataset_info.json"


def emit(job: Job, start: Start) -> Emitted:
    """LLaMA-Factory's configuration, its list of datasets, and a script."""
    again = recompute(job, TITLE)
    cannot = (*again.cannot, *common_limits(job), *_limits(job))
    several = (f"start it on each of the {job.machines.nodes} nodes, with the same MASTER_ADDR and its NODE_RANK",)
    first = (
        "install llamafactory and deepspeed; 0.9.5 pins transformers and peft older than the plan's",
        *(several if job.several_nodes else ()),
    )
    lines = [
        HERE,
        *filled([name for name in missing(job, start) if name == "MODEL"], CONFIG),
        *filled([name for name in missing(job, start) if name == "DATA"], DATASETS),
        *rendezvous(job),
        *environment(job),
        *_launch(job),
        f"exec llamafactory-cli train {CONFIG}",
    ]
    where = "MASTER_ADDR=FIRST_NODE NODE_RANK=N " if job.several_nodes else ""
    return Emitted(
        files={
            CONFIG: to_yaml(_config(job, start, recomputed=again.on), comments(job, TITLE, cannot, first)),
            DATASETS: to_json({"data": _dataset(start.data or "SET-DATA")}),
            NAME: script(comments(job, TITLE, first=first), lines),
        },
        command=f"{where}{bash(job, start, NAME, told_first=False)}",
        cannot=cannot,
        first=first,
    )


def _launch(job: Job) -> list[str]:
    """It starts torchrun itself, told by these."""
    nodes = f" NNODES={job.machines.nodes} NODE_RANK MASTER_ADDR" if job.several_nodes else ""
    return [f"export FORCE_TORCHRUN=1 NPROC_PER_NODE={job.machines.gpus_per_node}{nodes}"]


def _limits(job: Job) -> tuple[str, ...]:
    found = []
    if job.liger:
        found.append("which kernels of Liger: LLaMA-Factory takes its default set")
    if not job.packed:
        found.append("padding to the full sequence length: each batch is padded to its longest text, which needs less")
    return tuple(found)


def _dataset(data: str) -> dict[str, Any]:
    """A file or folder by its place, else a name of the hub."""
    local = data.startswith(("/", ".", "~")) or os.path.splitext(data)[1] in (".txt", ".json", ".jsonl", ".parquet")
    return {"file_name" if local else "hf_hub_url": data, "columns": {"prompt": "text"}}


def _config(job: Job, start: Start, *, recomputed: bool) -> dict[str, Any]:
    return {
        "model_name_or_path": model_of(job, start) or "SET-MODEL",
        "stage": "pt",  # texts as they are: tokens of all of them, no template
        "do_train": True,
        "dataset": "data",
        "dataset_dir": ".",
        "cutoff_len": job.seq_len,
        "packing": job.packed,
        "flash_attn": {"sdpa": "sdpa", "eager": "disabled"}[job.attention],
        **_adapters(job),
        **batch_and_steps(job),
        "output_dir": "checkpoints",
        **precision_and_optimizer(job),
        "disable_gradient_checkpointing": not recomputed,
        "use_reentrant_gc": False,
        "upcast_layernorm": False,
        "enable_liger_kernel": liger(job) is not None,
        "torch_compile": job.compile,
    }


def _adapters(job: Job) -> dict[str, Any]:
    if job.adapters is None:
        return {"finetuning_type": "full"}
    a = job.adapters
    found: dict[str, Any] = {
        "finetuning_type": "lora",
        "lora_rank": a.rank,
        "lora_alpha": a.alpha,
        "lora_dropout": a.dropout,
        "lora_target": ",".join(a.modules) or "all",
    }
    if job.quantization is not None:
        found |= {
            "quantization_method": "bnb",
            "quantization_bit": 4,
            "quantization_type": job.quantization.quant_type,
            "double_quantization": job.quantization.double_quant,
        }
    return found
