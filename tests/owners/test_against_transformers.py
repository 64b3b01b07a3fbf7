"""transformers itself reads training_arguments.yaml, and finds that it agrees with the plan's ds_config.json."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from trainplan.planner.emit.scripts import job_script

from .cases import files_of, shown

pytestmark = pytest.mark.oracle
training_args = pytest.importorskip("transformers.training_args")
RANKS = {name: document["decision"]["gpus"] for name, document in shown().items()}

ON_CPU = """import runpy, deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone: no compiling, no AVX-512 to ask for
runpy.run_path("hf_trainer.py", run_name="__main__")
"""


def hf_trainer(folder: Path) -> ModuleType:
    """The emitted script as a module."""
    path = folder / "hf_trainer.py"
    path.write_text(job_script("hf_trainer.py"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("hf_trainer_of_a_plan", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", shown())
def test_arguments_agree_with_ds_config(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed by HfArgumentParser with no key left over; the Trainer's own check finds no mismatch and fills nothing in.

    A machine without GPUs refuses bf16 and has one rank: both are told otherwise, and nothing else.
    """
    files, document = files_of("transformers", name), shown()[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "training_arguments.yaml").write_text(files["training_arguments.yaml"], encoding="utf-8")
    (tmp_path / "ds_config.json").write_text(json.dumps(document["ds_config"]))
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.setattr(training_args.TrainingArguments, "world_size", property(lambda _: RANKS[name]))
    script = hf_trainer(tmp_path)
    parser = script.HfArgumentParser((script.Settings, script.TrainingArguments))
    settings, arguments = parser.parse_yaml_file("training_arguments.yaml")
    deepspeed = arguments.hf_deepspeed_config
    deepspeed.trainer_config_finalize(arguments, None, arguments.max_steps)
    assert deepspeed.mismatches == []
    ours, theirs = document["ds_config"], dict(deepspeed.config)
    theirs["steps_per_print"] = ours["steps_per_print"]  # the Trainer prints by itself
    assert theirs == ours
    assert deepspeed.is_zero3() is (document["decision"]["zero_stage"] == 3)
    assert settings.checkpointed_layers == document["decision"]["checkpointed_layers"]
    assert "auto" not in json.dumps(ours)


def test_the_first_layers_recompute(tmp_path: Path) -> None:
    """The Trainer turns all layers on; the script leaves the first k of them."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, vocab_size=8)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.activation_checkpointing_enable()
    hf_trainer(tmp_path).FirstLayers(2).on_train_begin(None, None, None, model=model)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [True, True, False]


@pytest.mark.deepspeed
def test_the_script_trains(tmp_path: Path) -> None:
    """On one CPU process, two steps in fp32: stage 2, LoRA, the first of two layers recomputed.

    What differs from a GPU's plan: precision, the optimizer's fused kernel, sizes.
    """
    transformers = pytest.importorskip("transformers")
    vocabulary = {"<eos>": 0, "a": 1, "b": 2, "c": 3, "<unk>": 4}
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model = tmp_path / "model"
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>").save_pretrained(model)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=8, intermediate_size=64
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(model)
    (tmp_path / "data.txt").write_text("a b c\n" * 200)
    name = next(n for n, d in shown().items() if d["decision"]["method"] == "lora" and d["training"]["packed"])
    said = yaml.safe_load(files_of("transformers", name)["training_arguments.yaml"])
    said |= {
        "dtype": "float32", "bf16": False, "fp16": False, "seq_len": 16, "max_steps": 2, "save_steps": 1,
        "checkpointed_layers": 1, "activation_checkpointing": True, "torch_compile": False, "warmup_steps": 1,
        "activation_checkpointing_kwargs": {"use_reentrant": False, "offload": False},
        "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2,
    }  # fmt: skip
    ds = {
        "train_batch_size": 2, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1,
        "gradient_clipping": said["max_grad_norm"], "zero_optimization": {"stage": 2},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": said["learning_rate"], "betas": [said["adam_beta1"], said["adam_beta2"]],
                "eps": said["adam_epsilon"], "weight_decay": said["weight_decay"], "torch_adam": True,
            },
        },
    }  # fmt: skip
    (tmp_path / "training_arguments.yaml").write_text(yaml.safe_dump(said))
    (tmp_path / "ds_config.json").write_text(json.dumps(ds))
    (tmp_path / "hf_trainer.py").write_text(job_script("hf_trainer.py"))
    (tmp_path / "run.py").write_text(ON_CPU)
    ran = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "run.py",
            "training_arguments.yaml", "--data=data.txt", f"--model={model}", "--out=out",
        ],
        cwd=tmp_path, env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": ""},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    state = json.loads((tmp_path / "out" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [row["step"] for row in state["log_history"] if "loss" in row] == [1, 2]
