"""One rank of many engines, one after the other: `-m integration.engine_batch FOLDER`.

Reads FOLDER/specs.json, a list of jobs; writes their reports to FOLDER/rankN.json. Starting processes and
importing torch and DeepSpeed takes far longer than a tiny engine's few steps, so one pair of processes runs them all.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bitsandbytes  # noqa: F401 -- reason: peft imports it, and its tables should not be made within an engine
import torch
import transformers  # before any zero.Init: an import inside it breaks torch.dynamo
from transformers.integrations import HfDeepSpeedConfig

import deepspeed  # isort: skip -- after transformers, whose integrations look for it
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from . import engine_follower, engine_run  # isort: skip


def main(folder: Path) -> None:
    """Run every job; one that fails says why and does not stop the others."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: no compiling, no AVX-512 to ask for
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    allow_fp16()
    get_accelerator()._name = "cpu:0"  # so that DeepSpeed tells the accelerator from the host, where a share is cut
    reports = [attempt(spec) for spec in json.loads((folder / "specs.json").read_text())]
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(reports))
    comm.barrier()
    comm.destroy_process_group()  # otherwise torchrun may see an error at exit


def allow_fp16() -> None:
    """Let DeepSpeed train in fp16 here: torch computes it on any CPU, only slowly, which is all that the query says.

    Source:
        DeepSpeed 0.19.8 accelerator/cpu_accelerator.py, ``is_fp16_supported``: asks for mkldnn's fp16 kernels.
    """
    get_accelerator().is_fp16_supported = lambda: True


def attempt(spec: Mapping[str, Any]) -> dict[str, Any]:
    """One job's report, or its traceback."""
    try:
        with engine_follower.Follower() as follower:
            return run(spec, follower)
    except Exception:  # the report carries it, and the other jobs go on
        return {"error": traceback.format_exc()}
    finally:
        deepspeed.runtime.zero.partition_parameters.shutdown_init_context()
        gc.collect()
        gc.freeze()  # what is left are imports and caches: later collections need not look at them


def run(spec: Mapping[str, Any], follower: engine_follower.Follower) -> dict[str, Any]:
    """Build, initialize, step; what was held at every moment of the last step."""
    follower.enter_phase("build")
    model, partitioning = build_model(spec)
    gc.collect()  # the last tensor that zero.Init cut waits in a cycle; DeepSpeed collects before its large buffers too
    comm.barrier()  # until the next collective gloo holds on to the tensors of the last
    follower.enter_phase("start")
    trainable = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=spec["ds_config"])
    try:
        engine.train()
        follower.settle(engine)
        follower.note("start", engine)
        follower.enter_phase("between")
        steps(engine, spec, follower)
        if spec["save"]:
            with follower.during("save", engine), TemporaryDirectory() as folder:
                engine.save_16bit_model(folder)
        return {
            "optimizer": type(engine.optimizer).__name__,
            "base_optimizer": type(engine.basic_optimizer).__name__,
            "trainable_numels": [engine_run.numel(p) for p in trainable],
            "held_bytes": follower.held_bytes,
            "unexplained": follower.unexplained,
            "peak_bytes": follower.peak_bytes,
        }
    finally:
        engine.destroy()
        del partitioning


def build_model(spec: Mapping[str, Any]) -> tuple[Any, HfDeepSpeedConfig | None]:
    """The seeded model in the config's precision, with its adapters; for ZeRO-3 built inside zero.Init where wanted."""
    partitioning = HfDeepSpeedConfig(spec["ds_config"]) if spec["zero_init"] else None
    torch.manual_seed(engine_run.SEED)
    config = transformers.AutoConfig.for_model(spec["model"]["family"], **spec["model"]["config"])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, spec["dtype"]))
    model.config.use_cache = False
    return (engine_run.adapt(model, spec["lora"]) if spec["lora"] else model), partitioning


def steps(engine: Any, spec: Mapping[str, Any], follower: engine_follower.Follower) -> None:
    """Optimizer steps on the same tokens; every part of every micro-step is named after its step and itself."""
    rows = engine_run.micro_batches(engine, spec)
    for step in range(spec["steps"]):
        for micro, row in enumerate(rows):
            with follower.during(f"{step}/{micro}/forward", engine):
                loss = engine(input_ids=row, labels=row).loss
            with follower.during(f"{step}/{micro}/backward", engine):
                engine.backward(loss)
            del loss
            with follower.during(f"{step}/{micro}/step", engine):
                engine.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
