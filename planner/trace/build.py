"""From the keys of a config.json to the modules that transformers and peft train, on the meta device.

The config is a stranger's: only keys that the family's configuration class knows go in, none of the general ones
(label maps, dtypes, code to download), and no code of the repository is run.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

from ..computation import Adapters, AttentionImplementation, Computation, effective_attention
from ..model import Model
from ..workload import Precision

DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}
IMPLEMENTATIONS = {AttentionImplementation.FLASH: "sdpa", AttentionImplementation.EAGER: "eager"}
# Read by transformers 5.23.0 from keys of older files, which its configuration classes do not list.
OLDER_KEYS = frozenset(
    {
        "head_dim",
        "intermediate_size",
        "n_embed",
        "partial_rotary_factor",
        "rope_theta",
        "rope_scaling",
        "rope_local_base_freq",
        "sliding_window_pattern",
    }
)
INITIALISERS = ("kaiming_uniform_", "uniform_", "normal_", "zeros_", "ones_")


def built(model: Model, computation: Computation) -> Any:
    """The model in training mode: in its precision, quantised, adapted and checkpointed as the computation says."""
    dtype = DTYPES[computation.precision]
    with on_meta(dtype):
        whole = AutoModelForCausalLM.from_config(
            configuration(model), dtype=dtype, attn_implementation=_implementation(model, computation),
            trust_remote_code=False,
        )  # fmt: skip
        whole.config.use_cache = False
        if computation.quantized:
            from .linear4bit import quantise

            quantise(whole, dtype)
        if computation.adapters is not None:
            whole = adapted(whole, computation.adapters)
    checkpoint_first(whole, computation.checkpointed_layers)
    return whole.train()


def configuration(model: Model) -> Any:
    """transformers' configuration from the keys of config.json; of a multimodal one its text part's."""
    family, keys = known_keys(model)
    return CONFIG_MAPPING[family].from_dict(keys | {"use_cache": False})


def known_keys(model: Model) -> tuple[str, dict[str, object]]:
    """The family of transformers' configuration, and the keys that its class knows of its own."""
    keys = model.config
    family = model.family
    inner = keys.get("text_config")
    if isinstance(inner, Mapping):
        family = str(inner.get("model_type", f"{family}_text"))
        keys = {**inner, "tie_word_embeddings": keys.get("tie_word_embeddings", model.tied)}
    kind = CONFIG_MAPPING[family]
    known = {field.name for field in fields(kind)} - {field.name for field in fields(PreTrainedConfig)}
    allowed = (known | OLDER_KEYS | set(kind.attribute_map)) - {"use_cache"}
    return family, {key: value for key, value in keys.items() if key in allowed}


def _implementation(model: Model, computation: Computation) -> str:
    if all(block.attention is None for block, _ in model.distinct_blocks):  # transformers refuses SDPA for Mamba
        return "eager"
    return IMPLEMENTATIONS[effective_attention(model, computation.attention)]


@contextmanager
def on_meta(dtype: Any) -> Iterator[None]:
    """Modules get parameters of this type without storage, and nothing is initialised."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), ExitStack() as stack:
            for name in INITIALISERS:
                stack.enter_context(patch.object(nn.init, name, lambda tensor, *_, **__: tensor))
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own remarks: they are about weights and speed, of which there is neither."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def adapted(whole: Any, adapters: Adapters) -> Any:
    """peft's model: adapters in the training precision, to which DeepSpeed casts them."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=adapters.rank, lora_alpha=2 * adapters.rank, lora_dropout=adapters.dropout, bias="none",
        target_modules=list(adapters.targets) or linear_names(whole), task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(whole, config, autocast_adapter_dtype=False)


def linear_names(whole: Any) -> list[str]:
    """Last names of every nn.Linear and Conv1D but the head."""
    head = whole.get_output_embeddings()
    names = (
        name for name, module in whole.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    )
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def checkpoint_first(whole: Any, layers: int) -> None:
    """Let the first ``layers`` layers recompute their activations.

    Source:
        transformers 5.23.0 modeling_utils.py ``activation_checkpointing_enable``: the embeddings' output must then
        require a gradient, which frozen ones' would not. The random state lies on the host and is left out.
    """
    if not layers:
        return
    whole.enable_input_require_grads()
    recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    wrapped = [module for module in whole.modules() if isinstance(module, GradientCheckpointingLayer)]
    for module in wrapped[:layers]:
        module.gradient_checkpointing, module._gradient_checkpointing_func = True, recompute
