"""What training frameworks hold, as data (configs/frameworks.toml), and the state layout that follows for one job.

Bytes per element of what is trained, e the training precision:

    DDP, FSDP, mixed precision   weights 4 (they are their own master), gradients 4, computed on e-byte copies
    pure 16-bit                  weights 2, gradients 2, states in 16 bit unless stated
    Megatron                     weights 2, one fp32 gradient buffer 4, master 4, states
    DeepSpeed                    weights 2, gradients 2, master 4, states

Source:
    torch FSDP ``MixedPrecision``; Megatron-LM core/distributed; DeepSpeed runtime/zero; each entry's own source.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """One entry of configs/frameworks.toml."""

    name: str
    words: tuple[str, ...]
    sharding: str
    attention_generation: str
    software: str
    fused: bool
    overlapped: bool
    interleaved: bool
    fused_qkv: bool
    padded_vocabulary: bool
    sequence_parallel: bool
    lora_dropout: float
    quantized_input: bool
    logit_bytes: tuple[float, ...]
    gradient_bytes: int
    bucket_bytes: int
    step_copies: int
    whole_beside_shards: bool
    source: str
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """State bytes per trained element on one rank, and over how many ranks each kind is cut."""

    weights: int
    gradients: int
    master: int
    states: float
    step: int  # temporaries of the optimizer step
    weight_shards: int = 1
    gradient_shards: int = 1
    state_shards: int = 1
    gathered_bytes: int = 0  # per element of a gathered unit; 0: nothing is gathered
    held: bool = False  # gradients stay allocated between steps (one contiguous buffer)
    bucket_bytes: int = 0
    whole_beside_shards: bool = False
    window_elements: int = 0  # DeepSpeed's stage 3 keeps so many elements gathered instead of two units
    states_offloaded: bool = False  # master weights and states on the host
    reduced: int = 0  # bytes of a gradient on the wire; 0: as it is held
    overlapped: bool = False  # the gather of updated weights hides behind the next forward pass
    offloaded: bool = False  # weights, gradients and states wait on the host; units come to the GPU as they compute


@cache
def frameworks() -> tuple[Framework, ...]:
    """All entries, in the order they are matched.

    >>> frameworks()[-1].name
    'transformers'
    """
    text = files("trainplan.configs").joinpath("frameworks.toml").read_text(encoding="utf-8")
    return tuple(_entry(name, row) for name, row in tomllib.loads(text).items())


def _entry(name: str, row: dict[str, Any]) -> Framework:
    lists = {key: tuple(row[key]) for key in ("words", "logit_bytes")}
    return Framework(name=name, **{**row, **lists})


@lru_cache(maxsize=1024)
def framework_of(text: str) -> Framework:
    """The entry whose word stands in a description; the last one where none does.

    >>> framework_of("Megatron-DeepSpeed (Feb 2022)").name, framework_of("axolotl").name
    ('megatron-deepspeed', 'transformers')
    """
    lowered = text.lower()
    return next((f for f in frameworks() if any(word in lowered for word in f.words)), frameworks()[-1])
