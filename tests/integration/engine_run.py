"""One rank of a training run: `-m integration.engine_run FOLDER` reads FOLDER/spec.json, writes FOLDER/rankN.json.

The model is built from a seed by rank 0, saved, and loaded by every rank as a user would load it (for ZeRO-3 straight
into partitions), so that all configurations start from the same weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers  # before any zero.Init: an import inside it breaks torch.dynamo
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

import deepspeed  # isort: skip -- after transformers, whose integrations look for it
from deepspeed import comm

from . import engine_memory  # isort: skip

SEED = 20260101


def main(folder: Path) -> None:
    """Train as FOLDER/spec.json says."""
    spec = json.loads((folder / "spec.json").read_text())
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: no compiling, no AVX-512 to ask for
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    recorder = engine_memory.Recorder(measure=spec["measure"])
    with recorder:
        report = train(spec, folder, recorder)
    (folder / f"rank{comm.get_rank()}.json").write_text(json.dumps(report))
    comm.barrier()
    comm.destroy_process_group()  # otherwise torchrun may see an error at exit


def train(spec: Mapping[str, Any], folder: Path, recorder: engine_memory.Recorder) -> dict[str, Any]:
    """Build, initialize, step; the report of this rank."""
    model, partitioning = build_model(spec, folder)
    checkpointed = checkpoint_first(model, spec["checkpoint_layers"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=spec["ds_config"])
    forget_initial_step(engine.basic_optimizer)
    engine.train()  # from_pretrained leaves the model in eval mode, in which nothing is checkpointed
    losses = list(steps(engine, spec, recorder))
    del partitioning  # transformers knows it through a weak reference: it had to live until here
    return {
        "losses": losses,
        "optimizer": type(engine.optimizer).__name__,
        "base_optimizer": type(engine.basic_optimizer).__name__,
        "trainable_numels": [numel(p) for p in trainable],
        "frozen_numels": [numel(p) for p in model.parameters() if not p.requires_grad],
        "checkpointed_layers": checkpointed,
        "sub_groups": len(getattr(engine.optimizer, "fp32_partitioned_groups_flat", ())),
        "held_bytes": recorder.held_bytes,
        "peak_bytes": recorder.peak_bytes,
    }


def numel(parameter: Any) -> int:
    """Elements of the whole tensor, partitioned or not."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def build_model(spec: Mapping[str, Any], folder: Path) -> tuple[Any, HfDeepSpeedConfig | None]:
    """The seeded model in the config's precision, for ZeRO-3 loaded into partitions, with its adapters."""
    ds_config = spec["ds_config"]
    dtype = torch.bfloat16 if ds_config.get("bf16", {}).get("enabled") else torch.float32
    saved = folder / "model"
    if comm.get_rank() == 0:
        torch.manual_seed(SEED)
        config = transformers.AutoConfig.for_model(spec["model"]["family"], **spec["model"]["config"])
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(saved)
    comm.barrier()
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    partitioning = HfDeepSpeedConfig(ds_config) if stage == 3 else None
    model = transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    model.config.use_cache = False
    return (adapt(model, spec["lora"]) if spec["lora"] else model), partitioning


def adapt(model: Any, lora: Mapping[str, Any]) -> Any:
    """The model with seeded LoRA adapters in its own dtype, its base frozen."""
    import peft

    torch.manual_seed(SEED + 1)
    config = peft.LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], target_modules=list(lora["targets"]), task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config, autocast_adapter_dtype=False)


def checkpoint_first(model: Any, layers: int) -> int:
    """Let the first ``layers`` layers recompute their activations; how many do."""
    wrapped = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if layers:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in wrapped[layers:]:
        module.gradient_checkpointing = False
    return sum(module.gradient_checkpointing for module in wrapped)


def forget_initial_step(optimizer: Any) -> None:
    """Set Adam's step counters back to 0.

    Stage 0 in 16 bits allocates its states by one step on zero gradients, which the counter remembers: its bias
    correction then runs one step ahead of the other stages', and its second loss is off by 0.02 (measured, lr 1e-3).

    Source:
        DeepSpeed 0.19.8 runtime/fp16/unfused_optimizer.py, ``initialize_optimizer_states``.
    """
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"] * 0


def steps(engine: Any, spec: Mapping[str, Any], recorder: engine_memory.Recorder) -> Iterator[float]:
    """Take the optimizer steps, yielding the loss of each, meaned over micro-steps and ranks."""
    rows = micro_batches(engine, spec)
    recorder.hold("start", engine)
    for step in range(spec["steps"]):
        recorder.holding = step == spec["steps"] - 1
        total = torch.zeros(())
        for row in rows:
            with recorder.during("forward", engine):
                loss = engine(input_ids=row, labels=row).loss
            with recorder.during("backward", engine):
                engine.backward(loss)
            total += loss.detach().float() / len(rows)
            del loss
            with recorder.during("step", engine):
                engine.step()
        comm.all_reduce(total)
        yield float(total) / comm.get_world_size()


def micro_batches(engine: Any, spec: Mapping[str, Any]) -> list[torch.Tensor]:
    """This rank's sequences, one tensor per micro-step: the same every step, so that learning shows."""
    micro, micros = engine.train_micro_batch_size_per_gpu(), engine.gradient_accumulation_steps()
    vocab = spec["model"]["config"]["vocab_size"]
    shape = (comm.get_world_size(), micros, micro, spec["sequence_tokens"])
    everything = torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(SEED))
    return list(everything[comm.get_rank()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
