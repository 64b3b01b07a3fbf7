"""ds_config.json: the keys the stack stands for, and nothing that DeepSpeed ignores or gets wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..ledger import Ledger, merged
from ..transform import Setting

# Top-level keys of DeepSpeed 0.19.8 that trainplan may write; the engine accepts any other silently, so we do not.
TOP_LEVEL = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "steps_per_print",
    "wall_clock_breakdown",
    "bf16",
    "fp16",
    "data_types",
    "optimizer",
    "zero_allow_untested_optimizer",
    "zero_optimization",
    "aio",
)
NEVER = ("zenflow", "super_offload", "fast_init")  # scramble or zero weights, or need CUDA kernels: memory model §D


def ds_config(ledger: Ledger, setting: Setting) -> dict[str, Any]:
    """DeepSpeed's configuration for one stack in one setting.

    ``train_batch_size`` is written although it follows from the others: DeepSpeed then refuses another world size.

    Raises:
        AssertionError: a strategy wrote a key that DeepSpeed would ignore.
    """
    keys = merged(
        ledger.deepspeed,
        {
            "train_batch_size": setting.micro_batch * setting.gradient_accumulation_steps * setting.data_parallel,
            "steps_per_print": 10,
            "wall_clock_breakdown": False,
        },
    )
    unknown = set(keys) - set(TOP_LEVEL)
    assert not unknown, f"strategies wrote keys DeepSpeed does not know: {sorted(unknown)}"
    return {key: keys[key] for key in TOP_LEVEL if key in keys}


def to_json(document: Mapping[str, Any]) -> str:
    """Text of a JSON file: indented, in the order given, with a final newline."""
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
