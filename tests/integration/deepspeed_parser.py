"""DeepSpeed's own parser, asked without a process group what it makes of a ds_config."""

from __future__ import annotations

import os
from collections.abc import Iterator, KeysView, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

# Blocks whose unknown keys DeepSpeed ignores; zero_optimization, bf16 and the like are pydantic models: they forbid.
UNCHECKED_BLOCKS = ("activation_checkpointing", "aio", "data_types", "torch_autocast")


def parse(ds_config: Mapping[str, Any], world_size: int) -> Any:
    """DeepSpeed's ``DeepSpeedConfig`` of a configuration, as one of ``world_size`` data-parallel ranks would read it.

    Raises:
        Exception: whatever DeepSpeed raises for keys, values, combinations and batch sizes that it refuses.

    Source:
        DeepSpeed 0.19.8 runtime/config.py, ``DeepSpeedConfig.__init__``: its batch arithmetic asks comm for the ranks.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime import config

    group = SimpleNamespace(get_rank=lambda: 0, get_world_size=lambda: world_size)
    with patch.object(config, "dist", group):
        return config.DeepSpeedConfig(ds_config)


def unknown_keys(ds_config: Mapping[str, Any], world_size: int = 1) -> set[str]:
    """Keys that DeepSpeed would ignore without a word: those its parser never asks for; nested ones dotted.

    Covers the top level and the blocks of UNCHECKED_BLOCKS; nothing is listed by hand, so a new DeepSpeed is followed.
    """
    blocks = {name: ReadKeys(ds_config[name]) for name in UNCHECKED_BLOCKS if isinstance(ds_config.get(name), dict)}
    top = ReadKeys({**ds_config, **blocks})
    parse(top, world_size)
    nested = {f"{name}.{key}" for name, block in blocks.items() for key in block.unread()}
    return top.unread() | nested


def known_top_level_keys() -> set[str]:
    """Every top-level key that DeepSpeed's parser asks for, those it asks for only to refuse them included."""
    minimal = ReadKeys({"train_micro_batch_size_per_gpu": 1})
    parse(minimal, 1)
    return minimal.read


class ReadKeys(dict[str, Any]):
    """A dictionary that remembers which keys it was asked for; its copies share the memory."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__(items)
        self.read: set[str] = set()

    def unread(self) -> set[str]:
        """Keys nobody asked for."""
        return {key for key in dict.keys(self) if key not in self.read}

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As dict.get."""
        self.read.add(key)
        return super().get(key, default)

    def keys(self) -> Any:  # a view that asks this object, not its C storage
        """As dict.keys."""
        return KeysView(self)

    def __iter__(self) -> Iterator[str]:  # overridden so that ``**block`` goes through keys() and counts as read
        return super().__iter__()

    def __copy__(self) -> ReadKeys:
        twin = ReadKeys(dict(dict.items(self)))
        twin.read = self.read
        return twin
