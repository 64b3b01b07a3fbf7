"""What programs with a trainer of their own share: the safe side of what they cannot express, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..recipe import FINAL_RATE, WARMUP_SHARE
from ..units import duration, gib
from ..workload import Precision
from .job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """All layers or no layer; what that means beside the plan."""

    on: bool
    on_host: bool
    cannot: tuple[str, ...]


def recompute(job: Job, program: str, *, can_offload: bool = False) -> Recompute:
    """Activation checkpointing of a program that cannot take the first k layers, on the side that needs no more memory.

    Args:
        job: the plan.
        program: its name, for messages.
        can_offload: whether it can keep the inputs of checkpointed layers in host RAM.

    Raises:
        InputError: the plan keeps them in host RAM, the program cannot, and they do not fit on the GPU.
    """
    c = job.checkpointing
    if not c.layers:
        return Recompute(on=False, on_host=False, cannot=())
    on_host = c.on_host and can_offload
    if c.on_host and not on_host:
        _check_fits(job, program)
    cannot = []
    if c.on_host and not on_host:
        cannot.append(f"checkpoints in host RAM: they stay on the GPU{_means(job)}")
    if c.partial:
        cannot.append(f"the first {c.layers} of {c.of} layers alone: all {c.of} recompute{_means(job, on_host)}")
    return Recompute(on=True, on_host=on_host, cannot=tuple(cannot))


def _check_fits(job: Job, program: str) -> None:
    if job.whole is None or not job.whole.fits:
        what = "whether they do is unknown" if job.whole is None else f"{gib(job.whole.device_bytes)} are needed"
        raise InputError(
            f"--for: {program} cannot keep checkpoints in host RAM, and on the GPU they must fit: {what}; "
            f"use a target that starts train.py, or plan again with --forbid checkpointing-offload"
        )


def _means(job: Job, on_host: bool = False) -> str:
    """Memory and time of all layers beside the plan's."""
    if job.whole is None or on_host:
        return "; less GPU memory, longer steps"
    memory = f"at most {gib(job.whole.device_bytes)} of a GPU instead of {gib(job.device_bytes)}"
    return f"; {memory}, a step in {duration(job.whole.step_s)} instead of {duration(job.step_s)}"


def common_limits(job: Job) -> tuple[str, ...]:
    """What no such program is told."""
    found = []
    if job.loss_chunk_tokens:
        found.append(
            f"loss in chunks of {job.loss_chunk_tokens:,} tokens: Liger's fused linear cross-entropy is asked for, "
            "which chooses its own chunks"
        )
    if job.zero_stage == 3 and not job.zero_init and job.quantization is None:
        found.append("a model built whole before it is cut: it is built in partitions, which needs less memory")
    if job.optimizer.in_script and job.zero_stage:
        found.append(f"{job.optimizer.name} under ZeRO is made by the program, not by train.py: not tried")
    return tuple(found)


def liger(job: Job) -> dict[str, bool] | None:
    """Which kernels of Liger the plan means; None: none of them."""
    if not (job.liger or job.loss_chunk_tokens):
        return None
    fused = {"rope": job.liger, "rms_norm": job.liger, "swiglu": job.liger}
    return {**fused, "cross_entropy": False, "fused_linear_cross_entropy": bool(job.loss_chunk_tokens)}


# How transformers calls optimizers; ds_config's own take precedence where it has one.
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
    "lion": "lion_32bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def schedule(job: Job) -> dict[str, object]:
    """The learning rate over the steps, as train.py has it: a warm-up, then half a cosine; the rate itself is one key.

    transformers' first step has a rate of 0, train.py's a share of the warm-up.
    """
    return {
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": FINAL_RATE},
        "warmup_steps": max(1, int(job.steps * WARMUP_SHARE)),
    }


def batch_and_steps(job: Job) -> dict[str, object]:
    """As transformers.TrainingArguments, and programs that extend them, name batch, steps and saving."""
    return {
        "deepspeed": "ds_config.json",
        "per_device_train_batch_size": job.micro_batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "save_strategy": "steps",
        "save_steps": job.save_every,
        "save_total_limit": 2,
    }


def precision_and_optimizer(job: Job) -> dict[str, object]:
    """Likewise precision, clipping, the optimizer and its rate; every step is logged, on the machine alone."""
    return {
        "logging_steps": 1,
        "report_to": "none",
        "bf16": job.precision is Precision.BF16,
        "fp16": job.precision is Precision.FP16,
        "max_grad_norm": job.ds_config.get("gradient_clipping", 0.0),
        **hyperparameters(job),
        **schedule(job),
    }


def hyperparameters(job: Job) -> dict[str, object]:
    """Of the optimizer, as transformers.TrainingArguments names them; its Trainer refuses others than ds_config's."""
    o = job.optimizer
    found: dict[str, object] = {"optim": OPTIMIZERS[o.name], "learning_rate": o.learning_rate}
    if o.weight_decay is not None:
        found["weight_decay"] = o.weight_decay
    if o.betas is not None:
        found |= {"adam_beta1": o.betas[0], "adam_beta2": o.betas[1]}
    if o.eps is not None:
        found["adam_epsilon"] = o.eps
    return found
