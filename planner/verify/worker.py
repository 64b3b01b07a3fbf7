"""One rank of a plan's job, looked at: `-m trainplan.planner.verify.worker FOLDER`.

Reads FOLDER/jobs.json, a list of {"plan": ..., "steps": ..., "save": ...}; writes their reports to FOLDER/rankN.json.
Model and engine are made by the functions of the job that a plan emits (`planner.job.train`), so that what is looked
at is what will run; weights are drawn from a seed, tokens too. Starting processes and importing torch and DeepSpeed
takes far longer than a tiny engine's few steps, so one set of processes may run many jobs.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bitsandbytes  # noqa: F401 -- reason: peft imports it, and its tables should not be made within an engine
import torch
import transformers  # noqa: F401 -- reason: before any zero.Init: an import inside it breaks torch.dynamo

import deepspeed  # isort: skip -- after transformers, whose integrations look for it
from deepspeed import comm
from deepspeed.accelerator import get_accelerator

from ..architectures import build_model  # isort: skip
from ..job import train
from ..model import Model
from ..trace.build import known_keys
from .follow import Follower, Looker
from .meter import Meter

SEED = 20260101
PACKAGES = ("torch", "deepspeed", "transformers", "peft", "bitsandbytes")
Job = Mapping[str, Any]


def main(folder: Path) -> None:
    """Run every job; one of many that fails says why and does not stop the others."""
    gpu = get_accelerator().device_name() == "cuda"
    meter = Meter(gpu=gpu)
    if gpu:
        torch.cuda.set_device(train.local_rank())
    meter.begin()
    train.start_processes()
    comm.all_reduce(torch.zeros(1, device=train.local_device()))  # communicators come with the first collective
    meter.moment("communicators")
    if not gpu:
        allow_fp16()
        get_accelerator()._name = "cpu:0"  # so that DeepSpeed tells the accelerator from the host, where a share is cut
    jobs = json.loads((folder / "jobs.json").read_text())
    each = attempt if len(jobs) > 1 else look  # alone, an error ends all ranks at once: the others would wait for this
    reports = [each(job, folder / f"job{index}", meter) for index, job in enumerate(jobs)]
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(reports))
    comm.barrier()
    comm.destroy_process_group()  # otherwise torchrun may see an error at exit


def allow_fp16() -> None:
    """Let DeepSpeed train in fp16 here: torch computes it on any CPU, only slowly, which is all that the query says.

    Source:
        DeepSpeed 0.19.8 accelerator/cpu_accelerator.py, ``is_fp16_supported``: asks for mkldnn's fp16 kernels.
    """
    get_accelerator().is_fp16_supported = lambda: True


def attempt(job: Job, folder: Path, meter: Meter) -> dict[str, Any]:
    """One job's report, or its traceback."""
    try:
        return look(job, folder, meter)
    except Exception:  # the report carries it, and the other jobs go on
        return {"error": traceback.format_exc()}


def look(job: Job, folder: Path, meter: Meter) -> dict[str, Any]:
    """One job's report."""
    try:
        if meter.gpu:
            return run(job, folder, Looker(meter))
        with Follower() as follower:
            return run(job, folder, follower)
    finally:
        deepspeed.runtime.zero.partition_parameters.shutdown_init_context()
        gc.collect()
        gc.freeze()  # what is left are imports and caches: later collections need not look at them


def run(job: Job, folder: Path, looker: Looker) -> dict[str, Any]:
    """Build, initialize, step; what was held at every moment of the last step."""
    described = build_model(job["plan"]["model"]["config"], name="planned", source="plan")
    plan = known(job["plan"], described)
    looker.enter_phase("build")
    weights = train.new_model(plan, folder, seed=SEED, vocabulary=0)
    model = train.build_model(plan, str(weights), seed=SEED)
    gc.collect()  # the last tensor that zero.Init cut waits in a cycle; DeepSpeed collects before its large buffers too
    comm.barrier()  # until the next collective gloo holds on to the tensors of the last
    looker.built(model)
    looker.enter_phase("start")
    engine = train.start_engine(model, plan)
    try:
        looker.settle(engine)
        looker.note("start", engine)
        looker.enter_phase("between")
        batches = micro_batches(engine, plan["training"]["seq_len"], described.vocab)
        seconds = steps(engine, plan, batches, job["steps"], looker)
        if job.get("save"):
            with looker.during("save", engine), TemporaryDirectory() as saved:
                engine.save_16bit_model(saved)
        trained = [p for p in model.parameters() if p.requires_grad]
        return {
            "optimizer": type(engine.optimizer).__name__,
            "base_optimizer": type(engine.basic_optimizer).__name__,
            "trainable": sum(numel(p) for p in trained),
            "step_s": seconds,
            "versions": {name: metadata.version(name) for name in PACKAGES},
            **looker.report(),
        }
    finally:
        engine.destroy()


def known(plan: Job, model: Model) -> Job:
    """The plan with those keys of its model's configuration that transformers knows, and none of a stranger's."""
    family, keys = known_keys(model)
    return {**plan, "model": {**plan["model"], "config": {**keys, "model_type": family}}}


def numel(parameter: Any) -> int:
    """Elements of the whole tensor, partitioned or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def steps(engine: Any, plan: Job, batches: list[dict[str, Any]], count: int, looker: Looker) -> list[float]:
    """Optimizer steps on the same tokens; every part of every micro-step is named after its step and itself."""
    seconds = []
    for step in range(count):
        looker.noting = step == count - 1 or not looker.meter.gpu
        began = time.perf_counter()
        for micro, batch in enumerate(batches):
            with looker.during(f"{step}/{micro}/forward", engine):
                loss = train.loss_of(engine, plan, batch)
                looker.graph = loss.grad_fn
            with looker.during(f"{step}/{micro}/backward", engine):
                engine.backward(loss)
            looker.graph = None
            del loss
            with looker.during(f"{step}/{micro}/step", engine):
                engine.step()
        get_accelerator().synchronize()
        seconds.append(time.perf_counter() - began)
    return seconds


def micro_batches(engine: Any, seq_len: int, vocab: int) -> list[dict[str, Any]]:
    """This rank's sequences, one batch per micro-step, cut from those of all ranks."""
    micro, micros = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    shape = (comm.get_world_size(), micros, micro, seq_len)
    everything = torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(SEED))
    mine = everything[comm.get_rank()].to(train.local_device())
    return [{"input_ids": row, "labels": row} for row in mine]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
