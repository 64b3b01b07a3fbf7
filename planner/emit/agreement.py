"""Whether the parts of a plan agree: the batch's equation, decision, training and ds_config, which users may edit."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..workload import Method, Precision
from .deepspeed import TOP_LEVEL
from .training import ATTENTION, QUANT_BLOCK

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
MODULE = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
PACKAGE, VERSION = re.compile(r"[a-z][a-z0-9_-]*"), re.compile(r"\d[\w.+]*", re.ASCII)
QUANT_TYPES = ("nf4",)
SCRIPT_OPTIMIZERS = ("adamw-8bit", "paged-adamw-8bit")  # bitsandbytes' two, which no type of ds_config names
ALL_LINEAR = "all-linear"


def problems(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a plan's values; where nothing is, what of them contradicts.

    Args:
        document: a plan of the shape that ``read_plan`` checks, with ``training`` and ``ds_config``.
    """
    wrong = [*_wrong_values(document), *_wrong_ds_config(document["ds_config"])]
    yield from wrong or (*_contradictions(document), *_ds_contradictions(document))


def _wrong_values(document: Mapping[str, Any]) -> Iterator[str]:
    t, decision = document["training"], document["decision"]
    kinds = tuple(p.value for p in Precision)
    for key in ("seq_len", "global_batch", "steps", "save_every_steps"):
        if t[key] < 1:
            yield f"training.{key} is {t[key]}, not 1 or more"
    for key, allowed in (("precision", kinds), ("attn_implementation", tuple(ATTENTION.values()))):
        if t[key] not in allowed:
            yield f"training.{key} is {t[key][:40]!r}, not one of {', '.join(allowed)}"
    if t.get("model") is not None and not HUB_ID.fullmatch(t["model"]):
        yield f"training.model is {t['model'][:40]!r}, no hub id"
    if decision["gradient_accumulation_steps"] < 1:
        yield "decision.gradient_accumulation_steps is 0"
    if decision["zero_stage"] > 3:
        yield f"decision.zero_stage is {decision['zero_stage']}, not 0 to 3"
    if "torch" not in t["versions"]:
        yield "training.versions names no torch"
    for name, version in t["versions"].items():
        if not (PACKAGE.fullmatch(name) and isinstance(version, str) and VERSION.fullmatch(version)):
            yield f"training.versions names {name[:40]!r} {repr(version)[:40]}, no package's version"
    yield from _wrong_quantization(t.get("quantization"), kinds)
    yield from _wrong_adapters(document.get("adapters"))
    yield from _wrong_optimizer(t["optimizer"])


def _wrong_quantization(row: Mapping[str, Any] | None, kinds: tuple[str, ...]) -> Iterator[str]:
    if row is None:
        return
    if row["quant_type"] not in QUANT_TYPES or row["block_size"] != QUANT_BLOCK:
        yield f"training.quantization is {row['quant_type'][:40]!r} in blocks of {row['block_size']}, not nf4 of 64"
    for key in ("compute_dtype", "storage_dtype"):
        if row[key] not in kinds:
            yield f"training.quantization.{key} is {row[key][:40]!r}, not one of {', '.join(kinds)}"


def _wrong_adapters(row: Mapping[str, Any] | None) -> Iterator[str]:
    if row is None:
        return
    named = row["target_modules"]
    is_list = isinstance(named, list) and named and all(isinstance(m, str) and MODULE.fullmatch(m) for m in named)
    if named != ALL_LINEAR and not is_list:
        yield f"adapters.target_modules is {repr(named)[:40]}, not all-linear or a list of modules"
    if row["rank"] < 1 or row["dropout"] >= 1 or row.get("alpha") == 0:
        yield "adapters has no rank, no alpha, or a dropout of 1 or more"


def _wrong_optimizer(row: Mapping[str, Any]) -> Iterator[str]:
    if row["from"] not in ("ds_config", "script"):
        yield f"training.optimizer.from is {row['from'][:40]!r}, not ds_config or script"
    if row["from"] == "script":
        yield from _wrong_hyperparameters(row, "training.optimizer")
        if row["name"] not in SCRIPT_OPTIMIZERS:
            yield f"training.optimizer.name is {row['name'][:40]!r}, not one of {', '.join(SCRIPT_OPTIMIZERS)}"


def _wrong_hyperparameters(row: Mapping[str, Any], where: str) -> Iterator[str]:
    betas = row.get("betas", [0.0, 0.0])
    if not (isinstance(betas, list) and len(betas) == 2 and all(is_number(b) and b < 1 for b in betas)):
        yield f"{where}.betas is {repr(betas)[:40]}, not two numbers below 1"
    for key in ("lr", "eps", "weight_decay"):
        if (key == "lr" or key in row) and not is_number(row.get(key)):
            yield f"{where}.{key} is {repr(row.get(key))[:40]}, not a number"


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _wrong_ds_config(config: Mapping[str, Any]) -> Iterator[str]:
    """Keys that DeepSpeed would ignore in silence, and blocks that are none."""
    for key in config:
        if key not in TOP_LEVEL:
            yield f"ds_config.{key[:40]} is no key that trainplan writes and DeepSpeed knows"
    for key in ("bf16", "fp16", "zero_optimization", "optimizer"):
        if key in config and not isinstance(config[key], dict):
            yield f"ds_config.{key} is {repr(config[key])[:40]}, not an object"
    if not is_number(config.get("gradient_clipping", 0.0)):
        yield f"ds_config.gradient_clipping is {repr(config['gradient_clipping'])[:40]}, not a number"
    zero = config.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero, dict) and key in zero and not isinstance(zero[key], dict):
            yield f"ds_config.zero_optimization.{key} is {repr(zero[key])[:40]}, not an object"
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict):
        params = optimizer.get("params")
        if not isinstance(params, dict):
            yield f"ds_config.optimizer.params is {repr(params)[:40]}, not an object"
        else:
            yield from _wrong_hyperparameters(params, "ds_config.optimizer.params")


def _contradictions(document: Mapping[str, Any]) -> Iterator[str]:
    """Equations of the decision, with their numbers; what the names of its strategies mean."""
    d, t = document["decision"], document["training"]
    product = d["micro_batch"] * d["gradient_accumulation_steps"] * d["gpus"]
    if t["global_batch"] != product:
        yield (
            f"training.global_batch {t['global_batch']} is not micro_batch {d['micro_batch']} x "
            f"gradient_accumulation_steps {d['gradient_accumulation_steps']} x gpus {d['gpus']} = {product}"
        )
    if d["gpus"] != d["nodes"] * d["gpus_per_node"]:
        yield f"decision.gpus {d['gpus']} is not nodes {d['nodes']} x gpus_per_node {d['gpus_per_node']}"
    ranks = d.get("data_parallel_world_size")
    if ranks is not None and ranks != d["gpus"]:
        yield f"decision.data_parallel_world_size {ranks} is not gpus {d['gpus']}"
    c = t["checkpointing"]
    if c["layers"] != d["checkpointed_layers"] or c["layers"] > c["of"]:
        yield (
            f"training.checkpointing.layers {c['layers']} of {c['of']} is not "
            f"decision.checkpointed_layers {d['checkpointed_layers']}"
        )
    yield from _unlike_strategies(document)


def _unlike_strategies(document: Mapping[str, Any]) -> Iterator[str]:
    d, t, names = document["decision"], document["training"], set(document["decision"]["strategies"])
    said = {
        "checkpointing-offload": t["checkpointing"]["on_host"],
        "chunked-loss": t["loss_chunk_tokens"] > 0,
        "padded-batches": not t["packed"],
        "liger": t["liger"],
        "torch-compile": t["compile"],
        "eager-attention": t["attn_implementation"] == "eager",
        t["precision"]: True,
        t["optimizer"]["name"]: True,
    }
    for name, holds in said.items():
        if (name in names) is not holds:
            yield f"decision.strategies and training differ in {name}"
    adapted = d["method"] != Method.FULL.value
    if (document.get("adapters") is not None) is not adapted:
        yield f"decision.method is {d['method']} {'without' if adapted else 'with'} adapters"
    if (t.get("quantization") is not None) is not (d["method"] == Method.QLORA.value):
        yield f"decision.method is {d['method']}, and training.quantization says otherwise"


def _ds_contradictions(document: Mapping[str, Any]) -> Iterator[str]:
    """ds_config against the decision it was made from."""
    d, t, config = document["decision"], document["training"], document["ds_config"]
    zero = config.get("zero_optimization", {})
    wanted = {
        "train_batch_size": (config.get("train_batch_size"), t["global_batch"]),
        "train_micro_batch_size_per_gpu": (config.get("train_micro_batch_size_per_gpu"), d["micro_batch"]),
        "gradient_accumulation_steps": (config.get("gradient_accumulation_steps"), d["gradient_accumulation_steps"]),
        "zero_optimization.stage": (zero.get("stage", 0), d["zero_stage"]),
        "bf16.enabled": (config.get("bf16", {}).get("enabled", False), t["precision"] == "bf16"),
        "fp16.enabled": (config.get("fp16", {}).get("enabled", False), t["precision"] == "fp16"),
        "optimizer": ("optimizer" in config, t["optimizer"]["from"] == "ds_config"),
    }
    for key, short in (("offload_optimizer", "offload-optimizer-"), ("offload_param", "offload-parameters-")):
        named = next((s.removeprefix(short) for s in d["strategies"] if s.startswith(short)), "none")
        wanted[f"zero_optimization.{key}.device"] = (zero.get(key, {}).get("device", "none"), named)
    if t["zero_init"] and d["zero_stage"] != 3:
        yield f"training.zero_init is true in stage {d['zero_stage']}; only stage 3 has it"
    for key, (found, planned) in wanted.items():
        if type(found) is not type(planned) or found != planned:
            yield f"ds_config.{key} is {repr(found)[:40]}, and the plan says {planned!r}"
