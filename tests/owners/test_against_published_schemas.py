"""SkyPilot, Axolotl and LLaMA-Factory are not installed here: their published schemas, kept under tests/data, judge."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from .cases import loaded, schema, shown

SKYPILOT, AXOLOTL, FACTORY = schema("skypilot"), schema("axolotl"), schema("llamafactory")


def valid(document: Any, wanted: dict[str, Any]) -> None:
    """Check one document; a keyword of SkyPilot's own validator is checked as what it means."""
    jsonschema.Draft202012Validator(wanted).validate(document)


@pytest.mark.parametrize("name", shown())
def test_skypilot(name: str) -> None:
    """The task, which allows no other keys, and its resources, likewise."""
    task = loaded("skypilot", name, "sky.yaml")
    valid(task, SKYPILOT["task"])
    valid(task["resources"], SKYPILOT["resources"])
    with pytest.raises(jsonschema.ValidationError):
        valid({**task, "nodes": 2}, SKYPILOT["task"])


@pytest.mark.parametrize("name", shown())
def test_axolotl(name: str) -> None:
    """Every key is one of its model or its Liger plugin, of the right type."""
    document = loaded("axolotl", name, "axolotl.yaml")
    config, kernels = AXOLOTL["AxolotlInputConfig"], AXOLOTL["LigerArgs"]
    valid(document, config)
    valid(document, kernels)
    assert set(document) <= {*config["properties"], *kernels["properties"]}


@pytest.mark.parametrize("name", shown())
def test_llamafactory(name: str) -> None:
    """Every key is an argument of its own, or of transformers' Seq2SeqTrainingArguments, and choices are choices."""
    transformers = pytest.importorskip("transformers")
    document = loaded("llamafactory", name, "llamafactory.yaml")
    own, theirs = FACTORY["fields"], transformers.Seq2SeqTrainingArguments.__dataclass_fields__
    for key, value in document.items():
        assert key in own or key in theirs, key
        choices = own.get(key, {}).get("choices")
        assert not choices or value in choices, key
