"""planner/frameworks.py, configs/frameworks.toml: what a training framework holds, and how a row's is found."""

from __future__ import annotations

import re

import pytest
from trainplan.planner.frameworks import Framework, framework_of, frameworks

SHARDINGS = {"torch", "megatron", "deepspeed", "engine"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Megatron-DeepSpeed (Feb 2022)", "megatron-deepspeed"),
        ("Megatron-LM 23e00ed0 + TE 2.11", "megatron"),
        ("NeMo Megatron (dgxc 25.04)", "nemo"),
        ("LLM Foundry / Composer (FSDP)", "llm-foundry"),
        ("lit-gpt 8641822, torch 2.1, bnb 0.41.1", "lit-gpt"),
        ("litgpt", "lit-gpt"),
        ("fsdp_qlora, torch 2.2", "fsdp-qlora"),
        ("TorchTitan", "torchtitan"),
        ("something of our own", "transformers"),
        ("", "transformers"),
    ],
)
def test_the_first_whose_word_stands_in_the_text(text: str, name: str) -> None:
    """More special names come first, so that Megatron-DeepSpeed is not Megatron; what matches nothing is the last."""
    assert framework_of(text).name == name


@pytest.mark.parametrize("framework", frameworks(), ids=lambda f: f.name)
def test_every_entry_is_whole(framework: Framework) -> None:
    """A source, a date, a known layout; a logit's bytes at three moments or none; words as they are compared."""
    assert len(framework.source) > 20
    assert re.fullmatch(r"20\d\d-\d\d", framework.date)
    assert framework.sharding in SHARDINGS
    assert len(framework.logit_bytes) in (0, 3)
    assert all(word == word.lower() for word in framework.words)


def test_only_the_last_matches_everything() -> None:
    """An entry without words is reached where no other matches, so there is one, at the end."""
    assert [f.name for f in frameworks() if not f.words] == [frameworks()[-1].name]


@pytest.mark.parametrize("framework", frameworks()[:-1], ids=lambda f: f.name)
def test_every_entry_is_reached(framework: Framework) -> None:
    """No entry stands in another's shadow: each is found by one of its own words."""
    assert framework in [framework_of(word) for word in framework.words]
