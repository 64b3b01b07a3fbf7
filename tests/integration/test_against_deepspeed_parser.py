"""DeepSpeed's own parser accepts what plans emit, for the planned number of ranks, and ignores none of the keys.

What a CPU test machine cannot train is checked here alone: NVMe (libaio on a local disk) and Lion on the GPU (DeepSpeed
compiles it for CUDA only).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from trainplan.planner.emit.deepspeed import TOP_LEVEL, ds_config
from trainplan.planner.family import Family
from trainplan.planner.model import Model
from trainplan.planner.models import load_model
from trainplan.planner.states import baseline
from trainplan.planner.transform import Setting, fold
from trainplan.planner.workload import Method, Workload
from trainplan.strategies.optimizer import OPTIMIZERS
from trainplan.strategies.space import Choices, families

from .configurations import CLASSES, GLOBAL_BATCH, GPUS, LORA_OPTIONS, planned
from .deepspeed_parser import known_top_level_keys, parse, unknown_keys

pytestmark = pytest.mark.deepspeed

MODELS = ("llama-3-8b", "llama-3-70b")
WORLD_SIZES = (1, 8, 64)
MICRO_STEPS = (1, 4)  # with and without accumulation: stage 2 chooses its gradient type by it
# What --require may ask for beyond the shapes a search looks at by itself.
REQUIRED = (
    *[(name,) for name in (*OPTIMIZERS, "fp16", "fp32", "checkpointing-offload", "chunked-loss", "eager-attention")],
    ("offload-optimizer-cpu",),
    ("offload-optimizer-nvme",),
    ("lion", "offload-optimizer-cpu"),
    ("fp16", "offload-optimizer-cpu"),
)


def parsed(config: Mapping[str, Any], world_size: int) -> Any:
    """DeepSpeed's reading of a configuration, none of whose keys it ignores."""
    assert unknown_keys(config, world_size) == set()
    return parse(config, world_size)


def configs_of(model: Model, choices: Choices) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every different configuration of every family, with its number of ranks."""
    seen = set()
    for world_size in WORLD_SIZES:
        for micro_steps in MICRO_STEPS:
            at = setting(model, world_size, micro_steps)
            for family in families(choices, model):
                for config in configs_of_family(family, at):
                    text = json.dumps(config)
                    if text not in seen:
                        seen.add(text)
                        yield world_size, config


def configs_of_family(family: Family, at: Setting) -> Iterator[dict[str, Any]]:
    """One configuration for the smallest, a middle and the largest share of the optimizer on the host."""
    for groups in {1, max(1, family.groups // 2), max(1, family.groups)}:
        yield ds_config(fold(baseline(at), family.at(at.model.layers, groups), at), at)


def setting(model: Model, world_size: int, micro_steps: int) -> Setting:
    """Nodes of up to 8 GPUs, micro-batch 2."""
    batch = 2 * micro_steps * world_size
    workload = Workload(model=model, tokens=10**9, seq_len=4096, global_batch=batch)
    nodes = max(1, world_size // 8)
    return Setting(workload=workload, nodes=nodes, ranks_per_node=world_size // nodes, micro_batch=2)


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("name", MODELS)
def test_deepspeed_accepts_all_that_a_search_may_choose(name: str, method: Method) -> None:
    """Each family at 1, 8 and 64 ranks: it parses, no key is ignored, triangle and stage are the plan's."""
    model = load_model(name)
    stages = set()
    for world_size, config in configs_of(model, Choices(methods=(method,))):
        read = parsed(config, world_size)
        micro, micros = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
        assert read.train_batch_size == config["train_batch_size"] == micro * micros * world_size
        assert read.zero_config.stage == config["zero_optimization"]["stage"]
        stages.add(read.zero_config.stage)
    assert stages == {0, 1, 2, 3}


@pytest.mark.parametrize("required", REQUIRED, ids="+".join)
def test_deepspeed_accepts_what_may_be_required(required: tuple[str, ...]) -> None:
    """Every optimizer, every precision and the rest of --require, with every method: it parses, no key is ignored."""
    configs = configs_of(load_model("llama-3-8b"), Choices(require=required))
    found = [parsed(config, ranks) for ranks, config in configs]
    assert all(read.bfloat16_config.enabled == (not {"fp16", "fp32"} & set(required)) for read in found)
    assert all(read.float16_config.enabled == ("fp16" in required) for read in found)
    assert found


def test_nvme_reaches_deepspeed() -> None:
    """Optimizer states and parameters on NVMe arrive with their path, and prefetching is off beside them."""
    choices = Choices(methods=(Method.FULL,), require=("offload-optimizer-nvme", "offload-parameters-nvme"))
    found = [parsed(config, ranks).zero_config for ranks, config in configs_of(load_model("llama-3-8b"), choices)]
    for zero in found:
        assert {str(zero.offload_optimizer.nvme_path), str(zero.offload_param.nvme_path)} == {"/local_nvme"}
        assert zero.prefetch_bucket_size == 0
    assert found


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("method", [{}, LORA_OPTIONS], ids=["full", "lora"])
def test_deepspeed_accepts_the_tiny_plans(name: str, method: Mapping[str, Any]) -> None:
    """The configurations that are trained on real engines parse for two ranks, and for no other number."""
    config = planned(**CLASSES[name], **method).ds_config
    assert parsed(config, GPUS).train_batch_size == GLOBAL_BATCH
    with pytest.raises(AssertionError, match="Check batch related parameters"):
        parse(config, GPUS + 1)


def test_the_emitter_writes_known_keys_only() -> None:
    """Each top-level key that a plan may write is one that DeepSpeed's parser asks for."""
    assert set(TOP_LEVEL) <= known_top_level_keys()


@pytest.mark.parametrize("name", sorted(name for name, kind in OPTIMIZERS.items() if kind.deepspeed))
def test_optimizers_take_the_emitted_arguments(name: str) -> None:
    """DeepSpeed hands ``params`` to the optimizer as they are, less torch_adam, which names its own choice."""
    config = planned(zero=2, require=(name,)).ds_config["optimizer"]
    classes = _classes(config["type"])
    arguments = set(config["params"]) - {"torch_adam"}  # runtime/engine.py, get_optimizer_configuration
    for optimizer in classes:
        assert arguments <= set(inspect.signature(optimizer).parameters)


def _classes(kind: str) -> tuple[Any, ...]:
    """What DeepSpeed 0.19.8 runtime/engine.py, _configure_basic_optimizer, makes of ``optimizer.type``."""
    import torch
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

    return (FusedLion, DeepSpeedCPULion) if kind == "Lion" else (getattr(torch.optim, kind),)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"gradient_acumulation_steps": 4}, {"gradient_acumulation_steps"}),
        ({"activation_checkpointing": {"cpu_checkpointing": True, "foo": 1}}, {"activation_checkpointing.foo"}),
        ({"aio": {"block_size": 1_048_576, "thread_count": 1}}, {"aio.thread_count"}),
        ({"data_types": {"grad_accum_dtype": "fp32", "grad_acc_dtype": "fp32"}}, {"data_types.grad_acc_dtype"}),
        ({"tensorboard": {"enabled": False}, "checkpoint": {"load_universal": True}}, set()),
    ],
)
def test_ignored_keys_are_found(extra: dict[str, Any], expected: set[str]) -> None:
    """A misspelt key is reported; one that DeepSpeed knows is not."""
    assert unknown_keys({**planned(zero=2).ds_config, **extra}, GPUS) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}, "reduce_bucket"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "Partial offloading",
        ),
        ({"train_batch_size": 9}, "Check batch related parameters"),
        ({"amp": {"enabled": True}}, "AMP"),
    ],
)
def test_refusals_are_deepspeeds(change: dict[str, Any], words: str) -> None:
    """What DeepSpeed refuses is refused here: the stand-in for the process group hides nothing."""
    with pytest.raises(Exception, match=words):
        parse({**planned(zero=2).ds_config, **change}, GPUS)
