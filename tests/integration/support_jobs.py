"""Combinations of configs/compatibility.toml as jobs: what a plan emits for them, and what a training script adds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainplan.planner.compatibility import Refusal, stated_facts
from trainplan.strategies.space import NAMES

from .configurations import LORA, LORA_OPTIONS, Planned, planned_for
from .engine import TINY_LLAMA, TinyModel, launch

WORKER = "integration.engine_jobs"
STEPS = 3
SEQUENCE_TOKENS = 32
# Half as wide and deep as the models of `configurations`: bf16 is computed slowly on a CPU, and there are many jobs.
LLAMA = {**TINY_LLAMA, "num_hidden_layers": 2, "vocab_size": 256}
MODELS = {
    "llama": TinyModel(family="llama", config=LLAMA),
    "mixtral": TinyModel(family="mixtral", config={**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
BACKEND = "eager"  # traces as inductor does, and compiles no C++; aot_eager takes 100 s at stage 3
CHECKPOINTED = 1  # layers
RATES = {"sgd": 0.1, "adafactor": 1e-2, "lion": 1e-4}  # three steps at 1e-3 move these too little, or too far
ADAPTER_RATE, RATE = 1e-2, 1e-3
OPTIONS = {
    "zero_stage": "zero",
    "method": "method",
    "offload_optimizer": "offload_optimizer",
    "offload_parameters": "offload_parameters",
}
SCRIPT = (
    "moe",
    "adapters",
    "quant_storage",
    "checkpointing",
    "partial_share",
    "hpz",
)  # not options and not names to require
LEGAL_ALONE = (
    "zero_stage",
    "method",
    "optimizer",
    "precision",
)  # the rest of a refused combination is written by EDITS
EDITS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "offload_optimizer": lambda device: {
        "zero_optimization": {"offload_optimizer": {"device": device, "nvme_path": "nvme"}}
    },
    "offload_parameters": lambda device: {
        "zero_optimization": {"offload_param": {"device": device, "nvme_path": "nvme"}}
    },
    "partial_share": lambda _: {"zero_optimization": {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
    "gradient_accumulation": lambda kind: {"data_types": {"grad_accum_dtype": kind}},
}
REQUIRED = {fact: name for name, fact in NAMES.items()}


def plan_of(facts: Mapping[str, object]) -> Planned:
    """What `trainplan.estimate` emits for a tiny model of this combination."""
    stated = {"zero_stage": 0, **stated_facts(facts)}
    options: dict[str, Any] = {OPTIONS[fact]: value for fact, value in stated.items() if fact in OPTIONS}
    options["require"] = tuple(
        REQUIRED[fact, value] for fact, value in stated.items() if fact not in OPTIONS and fact not in SCRIPT
    )
    if stated.get("method") in ("lora", "qlora"):
        options = {**LORA_OPTIONS, **options}
    if stated.get("checkpointing"):
        options["checkpointing"] = CHECKPOINTED
    if stated.get("partial_share"):
        options["offload_ratio"] = 0.6
    return planned_for(MODELS["mixtral" if stated.get("moe") else "llama"], **options)


def rate_of(facts: Mapping[str, object]) -> float:
    """A learning rate at which three steps show."""
    if facts.get("method") in ("lora", "qlora"):
        return ADAPTER_RATE
    return RATES.get(str(facts.get("optimizer")), RATE)


def job_of(facts: Mapping[str, object], with_config: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The combination as `engine_jobs` reads it, with keys that no strategy emits."""
    plan, rate = plan_of(facts), rate_of(facts)
    return {
        "ds_config": merged(with_rate(plan.ds_config, rate), with_config),
        "model": asdict(plan.model),
        "lora": {**asdict(LORA), "fp32": facts.get("adapters") == "fp32"} if adapted(facts) else None,
        "checkpoint_layers": plan.checkpointed_layers,
        "steps": STEPS,
        "sequence_tokens": SEQUENCE_TOKENS,
        "compile": BACKEND if facts.get("compile") else None,
        "storage": facts.get("quant_storage", "bfloat16") if facts.get("method") == "qlora" else None,
        "zero_init": facts.get("zero_stage") == 3 and facts.get("zero_init") is not False,
        "attention": "eager" if facts.get("attention") == "eager" else None,
        "optimizer": facts.get("optimizer", "adamw"),
        "rate": rate,
        "trainable": plan.trainable,
        "pipeline": False,
    }


def refused_job(row: Refusal, facts: Mapping[str, object]) -> dict[str, Any]:
    """An illegal combination as a job: what is emitted for its legal part, with the keys that make it illegal."""
    legal = {fact: value for fact, value in facts.items() if fact in LEGAL_ALONE}
    job = job_of(legal)
    changes = [EDITS[fact](value) for fact, value in facts.items() if fact in EDITS]
    for change in (*changes, row.with_config):
        job["ds_config"] = merged(job["ds_config"], change)
    return {**job, "pipeline": facts.get("pipeline", False)}


def merged(config: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some keys set, blocks merged.

    >>> merged({"a": {"b": 1}}, {"a": {"c": 2}})
    {'a': {'b': 1, 'c': 2}}
    """
    found = dict(config)
    for key, value in change.items():
        block = found.get(key)
        found[key] = merged(block, value) if isinstance(block, dict) and isinstance(value, Mapping) else value
    return found


def adapted(facts: Mapping[str, object]) -> bool:
    """Whether adapters are trained."""
    return facts.get("method") in ("lora", "qlora")


def with_rate(config: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """A copy with another learning rate, where ds_config names an optimizer."""
    optimizer = config.get("optimizer")
    if optimizer is None:
        return dict(config)
    return {**config, "optimizer": {**optimizer, "params": {**optimizer["params"], "lr": rate}}}


def run_jobs(jobs: Sequence[Mapping[str, Any]], *, processes: int = 2) -> list[Any]:
    """The reports of all ranks, one list for each job, in one start of the processes.

    Raises:
        AssertionError: a process ended or hung; carries the end of its output.
    """
    with tempfile.TemporaryDirectory(prefix="trainplan-jobs-") as name:
        folder = Path(name)
        (folder / "specs.json").write_text(json.dumps(list(jobs)))
        launch(folder, processes, worker=WORKER)
        ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    return [list(reports) for reports in zip(*ranks, strict=True)]
