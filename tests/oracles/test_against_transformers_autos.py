"""What "auto" becomes, against transformers' own integration."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from trainplan.planner.dsconfig.resolving import Asked, resolve

pytestmark = pytest.mark.oracle

HIDDEN = 320
CONFIG: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "zero_optimization": {
        "stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto", "stage3_max_live_parameters": 1e9,
    },
    "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}  # fmt: skip


def filled(config: dict[str, Any], *, bf16: bool, micro: int, steps: int) -> dict[str, Any]:
    """The configuration after HfTrainerDeepSpeedConfig put TrainingArguments' values into it; one GPU."""
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    args = TrainingArguments(
        output_dir="unused", use_cpu=True, bf16=bf16, per_device_train_batch_size=micro,
        gradient_accumulation_steps=steps, report_to=[],
    )  # fmt: skip
    found = HfTrainerDeepSpeedConfig(copy.deepcopy(config))
    found.trainer_config_process(args)
    found.trainer_config_finalize(args, SimpleNamespace(config=SimpleNamespace(hidden_size=HIDDEN)), 100)
    return dict(found.config)


def at(config: dict[str, Any], path: str) -> Any:
    """A value by its dotted path."""
    for name in path.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("bf16", [True, False])
def test_autos_become_what_transformers_makes_of_them(stage: int, bf16: bool) -> None:
    """Every "auto" of the configuration in transformers' documentation; at stage 2 two of them stay: the default."""
    config = copy.deepcopy(CONFIG)
    config["zero_optimization"]["stage"] = stage
    theirs = filled(config, bf16=bf16, micro=2, steps=3)
    asked = Asked(gpus=1, hidden=HIDDEN, sequences=6, micro_batch=2, precision="bf16" if bf16 else None)
    ours = resolve(config, asked)
    autos = [path for path, _, _ in ours.autos]
    assert len(autos) == 13
    stays = [path for path in autos if at(theirs, path) == "auto"]
    assert len(stays) == (2 if stage == 2 else 0)
    for path in set(autos) - set(stays):
        assert ours[path] == at(theirs, path), path


def test_the_trainers_defaults_are_the_trainers() -> None:
    """Optimizer and clipping, where nobody says them."""
    from trainplan.planner.dsconfig.resolving import TRAINER_CLIPPING, TRAINER_PARAMS
    from transformers import TrainingArguments

    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    assert args.max_grad_norm == TRAINER_CLIPPING
    assert [args.learning_rate, [args.adam_beta1, args.adam_beta2], args.adam_epsilon, args.weight_decay] == [
        TRAINER_PARAMS[name] for name in ("lr", "betas", "eps", "weight_decay")
    ]
    assert (args.bf16, args.fp16, args.optim.value) == (False, False, "adamw_torch_fused")


def test_comments_are_refused_by_accelerate(tmp_path: Any) -> None:
    """json.load: the note of `check` says so."""
    from accelerate.utils.deepspeed import HfDeepSpeedConfig

    path = tmp_path / "ds_config.json"
    path.write_text('{"zero_optimization": {"stage": 2}} // ours\n')
    with pytest.raises(ValueError, match="Extra data"):
        HfDeepSpeedConfig(str(path))
