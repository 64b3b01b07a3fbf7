"""One measured run, started as a plan starts its job: `deepspeed --num_gpus 1 gpu_run.py --deepspeed DS_CONFIG`.

Reads run.json beside the configuration, trains for real, and writes result.json there: memory by phase, versions, step
times, and whether memory ran out. On a CPU accelerator the same steps run and memory is unknown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers  # before any zero.Init: an import inside it breaks torch.dynamo
from torch.nn import functional
from transformers.integrations import HfDeepSpeedConfig

import deepspeed  # isort: skip -- after transformers, whose integrations look for it
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from trainplan.planner.verify.machine import nvidia_smi
from trainplan.planner.verify.meter import Meter, out_of_memory

# Absolute: the launcher starts this file as a script, with the checkout's root on the path.
from tests.integration.engine_run import adapt, checkpoint_first  # isort: skip

SEED = 20260101
IGNORED = -100  # the label that torch's cross-entropy leaves out
LORA_ALPHA_PER_RANK = 2  # no effect on memory
LEARNING_RATE = 1e-5  # of optimizers that the script passes itself; no effect on memory
LARGEST_MESSAGE = 400  # characters of an error that are kept
VERSIONS = ("torch", "deepspeed", "transformers", "peft", "bitsandbytes")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Spec = Mapping[str, Any]


def main() -> None:
    """Run, and write down what happened, out of memory included."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", type=Path, required=True)
    folder = parser.parse_known_args()[0].deepspeed.parent
    spec = json.loads((folder / "run.json").read_text())
    meter = Meter(gpu=torch.cuda.is_available() and get_accelerator().device_name() == "cuda")
    result: dict[str, Any] = {"outcome": "fits", "environment": environment(meter.gpu)}
    try:
        result |= train(spec, json.loads((folder / "ds_config.json").read_text()), meter)
    except Exception as error:
        if not out_of_memory(error):
            raise
        result |= {"outcome": "oom", "oom_phase": meter.phase, "message": str(error)[:LARGEST_MESSAGE]}
    meter.close()
    result |= {"phases": meter.phases, "moments": meter.moments}
    (folder / "result.json").write_text(json.dumps(result))
    if result["outcome"] == "fits":
        comm.destroy_process_group()


def environment(gpu: bool) -> dict[str, str]:
    """Versions and hardware that a measurement holds for."""
    found = {name: metadata.version(name) for name in VERSIONS} | {"python": platform.python_version()}
    found["allocator"] = os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if gpu:
        drivers = nvidia_smi("--query-gpu=driver_version")
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
        found |= {"driver": drivers[0][0] if drivers else "unknown"}
        found |= {"total_bytes": str(torch.cuda.get_device_properties(0).total_memory)}
    return found


def train(spec: Spec, ds_config: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """Build, initialize, step; what the run was, and its step times."""
    meter.begin()
    meter.enter("start")
    if not meter.gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: no compiling
    deepspeed.init_distributed(dist_backend=None if meter.gpu else "gloo", verbose=False)
    comm.all_reduce(torch.zeros(1, device=device()))  # communicators come with the first collective
    meter.moment("communicators")
    model, partitioning = build(spec, ds_config)
    checkpointed = checkpoint_first(model, spec["checkpointed_layers"])
    calls = forward_of(model, spec, meter)
    trainable = [p for p in model.parameters() if p.requires_grad]
    own = own_optimizer(spec["optimizer"], trainable)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=ds_config, optimizer=own)
    engine.train()
    seconds = [step(engine, spec, calls, meter) for _ in range(spec["steps"])]
    meter.moment("end")
    del partitioning  # transformers knows it through a weak reference: it had to live until here
    return {
        "step_s": seconds,
        "checkpointed_layers": checkpointed,
        "engine": type(engine.optimizer).__name__,
        "trainable": sum(int(getattr(p, "ds_numel", p.numel())) for p in trainable),
    }


def device() -> str:
    """Where the engine trains."""
    return str(get_accelerator().current_device_name())


def build(spec: Spec, ds_config: dict[str, Any]) -> tuple[Any, HfDeepSpeedConfig | None]:
    """The model with random weights, as a script holds it before `deepspeed.initialize`.

    Stage 3 builds it straight into partitions (zero.Init), except with a 4-bit base, which no initialiser can fill.
    Below, it is drawn on the GPU, which is fast, and waits on the host, where loading a checkpoint leaves it.
    """
    config = dict(spec["model_config"])
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    config.use_cache = False
    quantized = spec["method"] == "qlora"
    partitioning = HfDeepSpeedConfig(ds_config) if spec["zero_stage"] == 3 and not quantized else None
    torch.manual_seed(SEED)
    with contextlib.nullcontext() if partitioning else torch.device(device()):
        model = transformers.AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[spec["precision"]], attn_implementation=spec["attention"]
        )
    if partitioning is None:
        model = quantize(model, spec) if quantized else model.to("cpu")
        get_accelerator().empty_cache()
    if spec["lora_rank"]:
        alpha = LORA_ALPHA_PER_RANK * spec["lora_rank"]
        targets = spec["lora_targets"]
        model = adapt(model, {"rank": spec["lora_rank"], "alpha": alpha, "targets": targets or linear_names(model)})
    return model, partitioning


def linear_names(model: Any) -> list[str]:
    """Names of every linear layer but the head, which is peft's "all-linear"."""
    head = model.get_output_embeddings()
    linear = (torch.nn.Linear, transformers.pytorch_utils.Conv1D)
    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, linear) and m is not head})


def quantize(model: Any, spec: Spec) -> Any:
    """Linear layers in NF4, stored in the training precision so that ZeRO can cut them; head and embedding stay."""
    layers: Any = importlib.import_module("bitsandbytes.nn")
    dtype = DTYPES[spec["precision"]]
    head = model.get_output_embeddings()
    options = {"compress_statistics": spec["double_quantization"], "quant_type": "nf4", "quant_storage": dtype}
    for name, module in list(model.named_modules()):
        if type(module) is not torch.nn.Linear or module is head:
            continue
        shape = (module.in_features, module.out_features, module.bias is not None)
        small = layers.Linear4bit(*shape, compute_dtype=dtype, device="meta", **options)
        small.weight = layers.Params4bit(module.weight.data.cpu(), requires_grad=False, module=small, **options)
        small.bias = module.bias
        model.set_submodule(name, small.to(device()))
    return model.requires_grad_(False)


def own_optimizer(name: str, trainable: list[Any]) -> Any:
    """An optimizer that DeepSpeed does not know by name; None where the configuration names one."""
    if "8bit" not in name:
        return None
    optimizers: Any = importlib.import_module("bitsandbytes.optim")
    kind = optimizers.PagedAdamW8bit if name.startswith("paged") else optimizers.AdamW8bit
    return kind(trainable, lr=LEARNING_RATE)


class ChunkedLoss(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is not followed
    """Cross-entropy of a linear head, a chunk of tokens at a time, gradients made in the forward pass.

    Alive: 12 bytes per logit of one chunk (fp32 logits, log-softmax, gradient), the gradient of the head's input, and
    that of its weight where it is trained. Memory model §A5.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, labels: Any, chunk: int) -> Any:
        """Sum over chunks of the loss, meaned over the tokens that count."""
        count = (labels != IGNORED).sum().clamp(min=1)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if weight.requires_grad else None
        for part, target, out in zip(hidden.split(chunk), labels.split(chunk), to_hidden.split(chunk), strict=True):
            loss, slope = loss_and_slope(functional.linear(part, weight), target, count)
            total += loss
            torch.mm(slope, weight, out=out)
            if to_weight is not None:
                to_weight.addmm_(slope.t(), part)
            del slope
        ctx.save_for_backward(to_hidden, *(() if to_weight is None else (to_weight,)))
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Scale what the forward pass made."""
        to_hidden, *to_weight = ctx.saved_tensors
        scaled = [tensor.mul_(gradients[0].to(tensor.dtype)) for tensor in (to_hidden, *to_weight)]
        return scaled[0], scaled[1] if to_weight else None, None, None


def loss_and_slope(logits: Any, target: Any, count: Any) -> tuple[Any, Any]:
    """The chunk's part of the mean loss, and its gradient by the logits in their own precision."""
    with torch.enable_grad():
        exact = logits.detach().float().requires_grad_()
        dtype = logits.dtype
        del logits
        loss = functional.cross_entropy(exact, target, ignore_index=IGNORED, reduction="sum") / count
        (slope,) = torch.autograd.grad(loss, exact)
    return loss.detach(), slope.to(dtype)


def forward_of(model: Any, spec: Spec, meter: Meter) -> Callable[[Any, Any], Any]:
    """What calls an engine on a row of tokens and returns its loss, marking where the loss begins."""
    inner = model.get_base_model() if spec["lora_rank"] else model
    if not spec["loss_chunk"]:
        whole = inner.loss_function

        def marked(*args: Any, **kwargs: Any) -> Any:
            meter.enter(loss_phase(meter.phase))
            return whole(*args, **kwargs)

        inner.loss_function = marked
        return lambda engine, row: engine(input_ids=row, labels=row).loss
    head = inner.get_output_embeddings()
    labels: list[Any] = []

    def chunked(hidden: Any) -> Any:
        meter.enter(loss_phase(meter.phase))
        return ChunkedLoss.apply(hidden.flatten(0, -2), head.weight, labels.pop(), spec["loss_chunk"])

    head.forward = chunked

    def call(engine: Any, row: Any) -> Any:
        labels.append(functional.pad(row, (0, 1), value=IGNORED)[:, 1:].flatten())
        return engine(input_ids=row).logits

    return call


def loss_phase(forward: str) -> str:
    """ "later forward" -> "later loss"."""
    return forward.replace("forward", "loss")


def step(engine: Any, spec: Spec, calls: Callable[[Any, Any], Any], meter: Meter) -> float:
    """One optimizer step; its seconds."""
    began = time.perf_counter()
    for micro in range(spec["accumulation"]):
        later = "later " if micro else ""
        vocab, shape = spec["shape"]["vocab"], (spec["micro_batch"], spec["seq_len"])
        row = torch.randint(0, vocab, shape, device=device())
        meter.enter(f"{later}forward")
        loss = calls(engine, row)
        meter.enter(f"{later}backward")
        engine.backward(loss)
        del loss
        meter.enter("step" if micro == spec["accumulation"] - 1 else f"{later}boundary")
        engine.step()
    if meter.gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
