"""Train a plan with Hugging Face's Trainer: training_arguments.yaml says what, ds_config.json how DeepSpeed runs it.

Usage: hf_trainer.py training_arguments.yaml --data PATH_OR_DATASET --model PATH_OR_HUB_ID [--out FOLDER]
Tried with torch 2.13.0, transformers 5.23.0, DeepSpeed 0.19.8, peft 0.21.2, datasets 5.2.0.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset, load_from_disk
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class Settings:
    """What the plan says of the model and its data, beside the arguments of the Trainer."""

    dtype: str = "bfloat16"
    attn_implementation: str = "sdpa"
    seq_len: int = 4096
    packing: bool = True
    checkpointed_layers: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    quant_type: str = ""
    double_quant: bool = True
    quant_compute_dtype: str = "bfloat16"
    quant_storage_dtype: str = "bfloat16"


class FirstLayers(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for mypy here
    """Only the first k layers recompute: the Trainer turns all of them on, and this those after them off."""

    def __init__(self, count: int) -> None:
        self.count = count

    def on_train_begin(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        """After the Trainer has turned them on, before the first step."""
        layers = [m for m in trainer["model"].modules() if isinstance(m, GradientCheckpointingLayer)]
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = index < self.count


def command_line() -> argparse.Namespace:
    """What is not the plan's: data, weights, where checkpoints go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", help="training_arguments.yaml")
    parser.add_argument("--data", required=True, help="a text file, a folder of datasets, or a dataset of the hub")
    parser.add_argument("--model", required=True, help="a folder with weights, or a hub id")
    parser.add_argument("--out", help="for checkpoints, instead of output_dir")
    return parser.parse_args()


def texts(data: str) -> Dataset:
    """The texts: a folder that datasets saved, a file of lines, or a name of the hub."""
    path = Path(data)
    if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        found = load_from_disk(data)
    elif path.is_file():
        found = load_dataset("json" if path.suffix in (".json", ".jsonl") else "text", data_files=data)
    else:
        found = load_dataset(data)
    return found["train"] if isinstance(found, dict) else found


def examples(data: Dataset, tokenizer: Any, settings: Settings) -> Dataset:
    """Token ids of one length: packed blocks, or texts that are cut and padded."""
    length = settings.seq_len

    def packed(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = tokenizer(rows["text"], add_special_tokens=True)["input_ids"]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        stream = list(chain.from_iterable([*row, *end] for row in ids))
        blocks = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    def padded(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(rows["text"], truncation=True, max_length=length, padding="max_length")
        pairs = zip(found["input_ids"], found["attention_mask"], strict=True)
        labels = [[t if kept else -100 for t, kept in zip(*pair, strict=True)] for pair in pairs]
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": labels}

    if not settings.packing and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    made = data.map(packed if settings.packing else padded, batched=True, remove_columns=data.column_names)
    if not len(made):
        raise SystemExit(f"--data: fewer than {length} tokens, not one sequence; give more text")
    return made


def build_model(model: str, settings: Settings, *, checkpointing: bool) -> Any:
    """Weights, quantised where the plan says so, with its adapters."""
    quantization = None
    if settings.quant_type:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.quant_type,
            bnb_4bit_use_double_quant=settings.double_quant,
            bnb_4bit_compute_dtype=getattr(torch, settings.quant_compute_dtype),
            bnb_4bit_quant_storage=getattr(torch, settings.quant_storage_dtype),
        )
    built = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=settings.attn_implementation,
        quantization_config=quantization,
    )
    built.config.use_cache = False
    if not settings.lora_rank:
        return built
    from peft import LoraConfig, get_peft_model

    if checkpointing:
        built.enable_input_require_grads()  # else no gradient reaches the adapters of a checkpointed layer
    named = settings.lora_target_modules
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if named == ["all-linear"] else named,
    )
    return get_peft_model(built, config, autocast_adapter_dtype=False)


def main() -> None:
    """Read, build, train; go on from the last checkpoint where there is one."""
    line = command_line()
    parser = HfArgumentParser((Settings, TrainingArguments))
    settings, arguments = parser.parse_yaml_file(line.arguments)  # first: under ZeRO-3 the model is built in partitions
    if line.out:
        arguments.output_dir = line.out
    tokenizer = AutoTokenizer.from_pretrained(line.model)
    with arguments.main_process_first(desc="tokenizing"):
        dataset = examples(texts(line.data), tokenizer, settings)
    model = build_model(line.model, settings, checkpointing=arguments.activation_checkpointing)
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=default_data_collator)
    trainer.add_callback(FirstLayers(settings.checkpointed_layers))
    last = get_last_checkpoint(arguments.output_dir) if os.path.isdir(arguments.output_dir) else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()


if __name__ == "__main__":
    main()
