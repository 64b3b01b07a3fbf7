"""configs/deepspeed.toml against the installed DeepSpeed: keys, types, defaults, and what its parser refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from trainplan.planner.dsconfig.changing import changed
from trainplan.planner.dsconfig.findings import Severity
from trainplan.planner.dsconfig.keys import Key, document, keys, sections
from trainplan.planner.dsconfig.problems import problems
from trainplan.planner.dsconfig.reading import from_mapping
from trainplan.planner.dsconfig.resolving import Asked, resolve

from .deepspeed_parser import known_top_level_keys, parse, unknown_keys

pytestmark = pytest.mark.deepspeed

PLAIN = {"train_micro_batch_size_per_gpu": 1}


def model_of(path: str) -> Any:
    """The pydantic model that DeepSpeed makes of a section."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor import config as monitor
    from deepspeed.runtime.config import HybridEngineConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig
    from deepspeed.runtime.zenflow.zenflow_config import ZenFlowConfig
    from deepspeed.runtime.zero import config, leaf_module_config, offload_config
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "zero_optimization": config.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.zenflow": ZenFlowConfig,
        "zero_optimization.leaf_module": leaf_module_config.DeepSpeedZeroLeafModuleConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "compile": CompileConfig,
        "hybrid_engine": HybridEngineConfig,
        "tensor_parallel": TPTrainingConfig,
        "comms_logger": CommsLoggerConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
        "tensorboard": monitor.TensorBoardConfig,
        "wandb": monitor.WandbConfig,
        "csv_monitor": monitor.CSVConfig,
        "comet": monitor.CometConfig,
    }[path]


MODELLED = [path for path, section in sections().items() if section.unknown == "error" and not section.alias]


def fields(path: str) -> dict[str, Any]:
    """A model's fields by the names that stand in a file."""
    return {field.alias or name: field for name, field in model_of(path).model_fields.items()}


@pytest.mark.parametrize("path", MODELLED)
def test_a_section_has_deepspeeds_keys(path: str) -> None:
    """No key too many, none too few; sections inside are sections of the table, removed keys are not keys."""
    inner = {p.rpartition(".")[2] for p in sections() if p.rpartition(".")[0] == path}
    ours = {name for name, key in sections()[path].keys.items() if key.kind != "removed"}
    assert ours | inner == set(fields(path))


@pytest.mark.parametrize("path", MODELLED)
def test_defaults_are_deepspeeds(path: str) -> None:
    """Every default that the table states is the model's; what it leaves out is null, or made by a factory."""
    from pydantic_core import PydanticUndefined

    for name, key in sections()[path].keys.items():
        if key.kind == "removed":
            continue
        default = fields(path)[name].default
        if default is PydanticUndefined or (key.type == "any" and key.default is None):
            continue
        value = getattr(default, "value", default)
        assert value == key.default, key.path
        assert isinstance(value, bool) == isinstance(key.default, bool), key.path


def test_top_level_is_what_the_parser_asks_for() -> None:
    """Keys and sections at the top are those that DeepSpeed's parser reads, removed ones included."""
    ours = set(sections()[""].keys) | {path for path in sections() if path and "." not in path}
    assert ours == known_top_level_keys()


def test_removed_keys_are_deepspeeds() -> None:
    """The same keys are refused, at the top and in zero_optimization, whatever their value."""
    from deepspeed.runtime import config

    top = {name for name, key in sections()[""].keys.items() if key.kind == "removed"}
    assert top == set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    for name in top:
        with pytest.raises(config.DeepSpeedConfigError):
            parse({**PLAIN, name: {}}, 1)
    zero = {name for name, key in sections()["zero_optimization"].keys.items() if key.kind == "removed"}
    assert zero == set(config._REMOVED_ZERO_CONFIG_KEYS)
    for name in zero:
        with pytest.raises(config.DeepSpeedConfigError):
            parse({**PLAIN, "zero_optimization": {name: 1}}, 1)


def test_top_level_defaults_are_deepspeeds() -> None:
    """What DeepSpeedConfig makes of a file that says nothing."""
    read = parse(PLAIN, 1)
    for name, key in sections()[""].keys.items():
        if key.kind == "used" and hasattr(read, name) and "batch" not in name and "data_type" not in name:
            found = getattr(read, name)
            assert (found == key.default) or name in ("gradient_accumulation_steps", "log_level"), name


def errors(config: Mapping[str, Any]) -> list[str]:
    """Paths that we say DeepSpeed refuses."""
    return [p.path for p in problems(from_mapping(config)) if p.severity is Severity.ERROR]


def accepts(config: Mapping[str, Any]) -> bool:
    """Whether DeepSpeed's parser takes a configuration."""
    try:
        parse(copy.deepcopy(dict(config)), 1)
    except Exception:
        return False
    return True


def nested(path: str, value: Any) -> dict[str, Any]:
    """A configuration with one key."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return {**PLAIN, **value}


VALUES: tuple[Any, ...] = (True, False, 0, 1, -1, 7, 1.5, 5e8, "auto", "true", "5", "x", None, [], {})
LAX = [
    key for path in MODELLED for key in sections()[path].keys.values() if key.type != "any" and key.kind != "removed"
]
# What must stand beside a key for its values to be judged by themselves: rules tell of the combinations.
BESIDE: Mapping[str, dict[str, Any]] = {
    "zero_optimization.compute_grad_norm": {"zero_optimization": {"stage": 2}},
    "zero_optimization.offload_optimizer.ratio": {"zero_optimization": {"stage": 3}},
    "bf16.bf16_master_weights_and_grads": {"zero_optimization": {"stage": 2}},
    "bf16.bf16_optimizer_states": {
        "zero_optimization": {"stage": 2}, "bf16": {"bf16_master_weights_and_grads": True},
    },
    "fp16.fp16_master_weights_and_grads": {"zero_optimization": {"stage": 2}},
}  # fmt: skip


@pytest.mark.parametrize("key", LAX, ids=lambda key: key.path)
def test_values_are_refused_where_deepspeed_refuses_them(key: Key) -> None:
    """Fifteen values of every checked key: we say "error" exactly where the parser raises."""
    beside = {**PLAIN, **BESIDE.get(key.path, {})}
    configs = [(value, changed(beside, {key.path: value})) for value in VALUES]
    differing = [value for value, config in configs if accepts(config) == bool(errors(config))]
    assert differing == []


@pytest.mark.parametrize("path", MODELLED)
def test_unknown_keys_are_errors_in_models(path: str) -> None:
    """A misspelt key stops DeepSpeed there, and we say so."""
    config = nested(f"{path}.no_such_key", 1)
    assert not accepts(config)
    assert errors(config) == [f"{path}.no_such_key"]


@pytest.mark.parametrize("path", ["", "activation_checkpointing", "aio", "data_types", "torch_autocast"])
def test_unknown_keys_are_ignored_elsewhere(path: str) -> None:
    """DeepSpeed never asks for them; we call them without effect."""
    where = f"{path}.no_such_key" if path else "no_such_key"
    config = nested(where, 1)
    assert unknown_keys(config) == {where}
    assert [p.rule for p in problems(from_mapping(config)) if p.severity is Severity.WASTEFUL] == ["unknown-key"]


def combinations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Configurations that rules of configs/deepspeed_rules.toml call errors of the parser."""
    zero: dict[str, Any] = {"stage": 2}
    yield "two-precisions", {**PLAIN, "fp16": {"enabled": True}, "bf16": {"enabled": True}}
    yield "batch-triangle", {**PLAIN, "train_batch_size": 7, "gradient_accumulation_steps": 3}
    yield "no-batch", {"gradient_accumulation_steps": 3}
    yield "share-below-stage-3", {
        **PLAIN, "zero_optimization": {**zero, "offload_optimizer": {"device": "cpu", "ratio": 0.5}},
    }  # fmt: skip
    yield "summed-over-ranks-at-stage-3", {
        **PLAIN, "gradient_allreduce_op": "sum", "zero_optimization": {"stage": 3},
    }  # fmt: skip
    yield "no-norm", {**PLAIN, "zero_optimization": {"stage": 3, "compute_grad_norm": False}}
    yield "16-bit-master-without-zero", {**PLAIN, "bf16": {"enabled": True, "bf16_master_weights_and_grads": True}}
    yield "16-bit-states-alone", {
        **PLAIN, "bf16": {"enabled": True, "bf16_optimizer_states": True}, "zero_optimization": zero,
    }  # fmt: skip
    yield "old-and-new-offload", {
        **PLAIN, "zero_optimization": {**zero, "cpu_offload": True, "offload_optimizer": {"device": "cpu"}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "config"), list(combinations()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_refused_combinations_are_refused(rule: str, config: dict[str, Any]) -> None:
    """The parser raises, and so does the rule of this name."""
    import trainplan

    from ..tiny import llama

    assert not accepts(config)
    found = trainplan.check(config, llama(), gpus="1xa100-80", price=1.0, host_memory_gib=100)
    assert rule in [finding.rule for finding in found.findings if finding.severity is Severity.ERROR]


ASKED = Asked(gpus=1, hidden=64, sequences=1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_values_in_force_are_deepspeeds(stage: int) -> None:
    """A file with sizes, a deprecated key and autos: what is in force is what DeepSpeed's objects hold."""
    config = {
        **PLAIN,
        "bfloat16": {"enabled": True},
        "zero_optimization": {
            "stage": stage, "cpu_offload": True, "reduce_bucket_size": "2000000", "sub_group_size": 1e8,
            "stage3_max_live_parameters": "auto", "stage3_prefetch_bucket_size": 5e7,
        },
    }  # fmt: skip
    ours, theirs = resolve(config, ASKED), parse(copy.deepcopy(config), 1)
    zero = theirs.zero_config
    assert ours["bf16.enabled"] is theirs.bfloat16_config.enabled is True
    assert ours.zero("offload_optimizer.device") == zero.offload_optimizer.device == "cpu"
    for name, field in fields("zero_optimization").items():
        attribute = next(n for n, f in type(zero).model_fields.items() if f is field)
        if name in sections()["zero_optimization"].keys and keys()[f"zero_optimization.{name}"].kind == "used":
            assert ours.zero(name) == getattr(zero, attribute), name


def test_the_version_is_the_one_that_is_installed() -> None:
    """The table says of which version it is."""
    import deepspeed

    assert document()["version"] == deepspeed.__version__.split("+")[0]


def test_torchs_optimizers_are_torchs() -> None:
    """Names that are passed on to torch.optim are there, and none is missing."""
    import torch
    from trainplan.planner.dsconfig.meaning import LOWERED, TORCH

    classes = {
        name for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name != "Optimizer"
    }  # fmt: skip
    assert {name for name in classes if name.lower() not in LOWERED} | {"Muon"} == set(TORCH) | ({"Muon"} & classes)


def test_duplicates_are_refused_as_deepspeed_does(tmp_path: Path) -> None:
    """hjson with DeepSpeed's hook raises; comments and trailing commas it takes."""
    import hjson
    from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys
    from trainplan.planner.dsconfig.reading import from_text

    text = '{"steps_per_print": 1, "steps_per_print": 2}'
    with pytest.raises(ValueError, match="Duplicate keys"):
        hjson.loads(text, object_pairs_hook=dict_raise_error_on_duplicate_keys)
    assert [p.rule for p in problems(from_text(text, name="x"))] == ["duplicate-key"]
    commented = '{"a": [1, 2,], // why\n "b": 1e9, # and\n /* this */ "c": null,}'
    assert json.loads(json.dumps(hjson.loads(commented))) == dict(from_text(commented, name="x").values)
