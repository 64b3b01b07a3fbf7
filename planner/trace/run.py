"""One optimizer step on the meta device: forward, loss and backward of each micro-step, then the optimizer."""

from __future__ import annotations

import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from . import Category, Subject, Trace
from .build import built, quiet
from .chunked_loss import chunked_loss
from .gpu import dispatched
from .live import LiveStorages, owner
from .summary import summarised

MOMENTS = 2  # Adam
LONGEST_REASON = 160  # characters of a library's message that ours repeats
MODELING = "modeling_"  # how transformers' files of models begin


def traced(subject: Subject) -> Trace:
    """Build, run, and sum up; see `trainplan.planner.trace.trace`."""
    began = time.perf_counter()
    live = LiveStorages()
    try:
        with quiet(), dispatched(subject.model):
            model = built(subject.model, subject.computation)
            step(model, subject, live)
    except Exception as error:  # whatever torch, transformers or peft raise
        raise InputError(_untraceable(subject, live, error)) from error
    return summarised(live, subject, seconds=time.perf_counter() - began)


def _untraceable(subject: Subject, live: LiveStorages, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).name.startswith(MODELING)]
    where = f"{Path(inside[-1].filename).stem}.{inside[-1].name}" if inside else f"{type(error).__name__}"
    operator = f", operator {live.doing}" if live.doing else ""
    reason = " ".join(str(error).split())[:LONGEST_REASON] or type(error).__name__
    return (
        f"trace: {subject.model.name} cannot be traced: {where}{operator}: {reason}; "
        f"`trainplan estimate` does without a trace"
    )


def step(model: Any, subject: Subject, live: LiveStorages) -> None:
    """Forward, loss and backward of every micro-step, then the optimizer."""
    for name, parameter in model.named_parameters():
        live.tag(parameter, Category.PARAMETERS, "parameter", owner(name))
    for name, buffer in model.named_buffers():
        live.tag(buffer, Category.BUFFERS, "buffer", owner(name))
    inputs = torch.zeros((subject.micro_batch, subject.seq_len), dtype=torch.long, device="meta")
    live.tag(inputs, Category.INPUTS, "input")
    live.watch_gradients(model)
    with ExitStack() as stack:
        stack.enter_context(live.naming(model))
        stack.enter_context(live)
        for _ in range(subject.micro_steps):
            live.phase("forward")
            with live.saving():
                loss = loss_of(model, inputs, subject.computation.loss_chunk)
            live.phase("backward")
            loss.backward()
            del loss
        live.phase("step")
        states = _update(model, live) if subject.optimizer_step else []
    del states


def loss_of(model: Any, inputs: Any, chunk: int) -> Any:
    """transformers' own loss, or a fused one; the logits are not kept for the caller."""
    if chunk:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return chunked_loss(base, inputs, chunk)
    return model(input_ids=inputs, labels=inputs, use_cache=False).loss


def _update(model: Any, live: LiveStorages) -> list[Any]:
    """What a fused AdamW allocates: two moments in the parameter's type and a step count.

    Source:
        torch 2.13.0 optim/adamw.py with fused=True: the kernel updates in place.
    """
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    states = [torch.zeros_like(parameter) for parameter in trained for _ in range(MOMENTS)]
    states += [torch.zeros((), dtype=torch.float32, device="meta") for _ in trained]
    for state in states:
        live.tag(state, Category.OPTIMIZER)
    return states
