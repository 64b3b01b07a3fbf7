"""One rank of many training runs, one after the other: `-m integration.engine_jobs FOLDER`.

Reads FOLDER/specs.json, a list of what `engine.run_engine` takes and what a training script does beside ds_config
(quantises, compiles, makes its own optimizer); writes their reports to FOLDER/rankN.json.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes  # before any engine: peft imports it, and its tables should not be made within one
import torch
import transformers  # before any zero.Init: an import inside it breaks torch.dynamo
from transformers.integrations import HfDeepSpeedConfig

import deepspeed  # isort: skip -- after transformers, whose integrations look for it
from deepspeed import comm
from trainplan.planner.verify.worker import allow_fp16

from . import engine_memory, engine_run  # isort: skip


def main(folder: Path) -> None:
    """Run every job; one that fails says why and does not stop the others."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: no compiling, no AVX-512 to ask for
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    allow_fp16()
    specs = json.loads((folder / "specs.json").read_text())
    reports: list[dict[str, Any]] = []
    for index, spec in enumerate(specs):
        reports.append(attempt(spec, folder / f"job{index}"))
        (folder / f"rank{comm.get_rank()}.json").write_text(
            json.dumps(reports)
        )  # what was done, should a later one hang
    comm.barrier()
    comm.destroy_process_group()  # otherwise torchrun may see an error at exit


def attempt(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One job's report, or its traceback."""
    started_s = time.monotonic()
    try:
        job = pipeline if spec["pipeline"] else train
        return {**job(spec, folder), "wall_s": time.monotonic() - started_s}
    except Exception:  # the report carries it, and the other jobs go on
        return {"error": traceback.format_exc()}
    finally:
        deepspeed.runtime.zero.partition_parameters.shutdown_init_context()
        torch._dynamo.reset()
        gc.collect()


def train(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Build, initialize, step; the losses, and how the engine went about it."""
    model, partitioning = build_model(spec, folder)
    partitioned_at_load = any(hasattr(p, "ds_tensor") for p in model.parameters())
    torch._dynamo.utils.counters.clear()
    checkpointed = engine_run.checkpoint_first(model, spec["checkpoint_layers"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    before = weights(model)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=trainable, optimizer=optimizer(spec, trainable), config=spec["ds_config"]
    )
    try:
        changed = sum(differ(*pair) for pair in zip(before, weights(model), strict=True))
        engine_run.forget_initial_step(engine.basic_optimizer)
        if spec["compile"]:
            engine.compile(backend=spec["compile"])
        engine.train()
        losses = list(engine_run.steps(engine, spec, engine_memory.Recorder(measure=False)))
        return {
            "losses": losses,
            "optimizer": type(engine.optimizer).__name__,
            "base_optimizer": type(engine.basic_optimizer).__name__,
            "weights_changed": changed,
            "files": sorted(map(str, Path("nvme").rglob("*"))),
            "stage": int(engine.zero_optimization_stage()),
            "sums": str(engine.get_data_types()[1]),
            "types": sorted({str(p.dtype) for p in model.parameters()}),
            "family": model.config.model_type,
            "attention": model.config._attn_implementation,
            "checkpointed_layers": checkpointed,
            "compiled_frames": torch._dynamo.utils.counters["frames"]["ok"],
            "trainable": sum(engine_run.numel(p) for p in trainable),
            "quantized": [type(p).__name__ for p in model.parameters()].count("Params4bit"),
            "partitioned_at_load": partitioned_at_load,
            "held_share": held_elements(model) / sum(engine_run.numel(p) for p in model.parameters()),
        }
    finally:
        engine.destroy()
        del partitioning


def pipeline(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Two layers on two ranks as a pipeline of two stages; whether they train is not asked."""
    layers = [torch.nn.Linear(8, 8) for _ in range(2)]
    model = deepspeed.pipe.PipelineModule(layers=layers, num_stages=2, loss_fn=torch.nn.functional.mse_loss)
    ds_config = {key: value for key, value in spec["ds_config"].items() if key != "train_batch_size"}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=ds_config)
    engine.destroy()
    return {"losses": []}


def weights(model: Any) -> list[torch.Tensor]:
    """Copies of what a rank holds of the trained parameters, in fp32: of the whole, or of its partition."""
    parameters = (p for p in model.parameters() if p.requires_grad)
    return [getattr(p, "ds_tensor", p).detach().float().clone() for p in parameters]


def differ(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a weight was changed; one that was cut in between cannot be compared."""
    return before.shape == after.shape and not torch.equal(before, after)


def held_elements(model: Any) -> int:
    """Elements of parameters that this rank keeps between steps."""
    return sum(p.ds_tensor.numel() if hasattr(p, "ds_tensor") else p.numel() for p in model.parameters())


def optimizer(spec: Mapping[str, Any], trainable: list[Any]) -> Any:
    """The optimizer that the script makes itself, where ds_config names none."""
    if "optimizer" in spec["ds_config"]:
        return None
    kinds = {"adamw-8bit": bitsandbytes.optim.AdamW8bit, "paged-adamw-8bit": bitsandbytes.optim.PagedAdamW8bit}
    return kinds[spec["optimizer"]](trainable, lr=spec["rate"])


def build_model(spec: Mapping[str, Any], folder: Path) -> tuple[Any, HfDeepSpeedConfig | None]:
    """The seeded model, loaded as a user would load it; in 4 bits where wanted."""
    ds_config = spec["ds_config"]
    dtype = dtype_of(ds_config)
    if comm.get_rank() == 0:
        torch.manual_seed(engine_run.SEED)
        config = transformers.AutoConfig.for_model(spec["model"]["family"], **spec["model"]["config"])
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    comm.barrier()
    partitioning = HfDeepSpeedConfig(ds_config) if spec["zero_init"] else None
    extra: dict[str, Any] = {}
    if spec["storage"]:
        extra["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=getattr(torch, spec["storage"]),
        )
    if spec["attention"]:
        extra["attn_implementation"] = spec["attention"]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra)
    model.config.use_cache = False
    return (adapt(model, spec["lora"]) if spec["lora"] else model), partitioning


def dtype_of(ds_config: Mapping[str, Any]) -> torch.dtype:
    """The training precision."""
    enabled = [name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")]
    return {"bf16": torch.bfloat16, "fp16": torch.float16}[enabled[0]] if enabled else torch.float32


def adapt(model: Any, lora: Mapping[str, Any]) -> Any:
    """The model with adapters in its own type, or in fp32 as peft makes them by itself."""
    adapted = engine_run.adapt(model, lora)
    if lora["fp32"]:
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return adapted


if __name__ == "__main__":
    main(Path(sys.argv[1]))
