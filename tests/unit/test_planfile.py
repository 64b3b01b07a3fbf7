"""planner/planfile.py: a plan goes to a file and comes back; a hostile file is refused in one line."""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trainplan
import trainplan.api
from trainplan.api import Refused, why_not
from trainplan.planner.emit.deepspeed import to_json
from trainplan.planner.errors import InputError
from trainplan.planner.planfile import LARGEST_BYTES, model_of, read_plan, request_of

from .test_plan import MODEL, OWN


@cache
def text() -> str:
    """A plan as it is written."""
    return to_json(trainplan.plan(MODEL, **OWN).to_dict())


def document() -> dict[str, Any]:
    """A fresh copy to spoil."""
    return copy.deepcopy(json.loads(text()))


def written(folder: Path, content: str | bytes) -> Path:
    """plan.json with any content."""
    path = folder / "plan.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def asked(reference: str, num_gpus: int = 4) -> Refused:
    """A question put to a plan file."""
    read = read_plan(reference)
    return why_not(model_of(read), request_of(read), read["decision"], num_gpus=num_gpus)


def refused(path: Path | str) -> str:
    """The message, which is one short line."""
    with pytest.raises(InputError) as caught:
        asked(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_round_trip(tmp_path: Path) -> None:
    """File or folder: the same document, the same tensors, the same request."""
    path = written(tmp_path, text())
    for reference in (path, tmp_path):
        read = read_plan(str(reference))
        assert read == document()
    assert model_of(read).parameters == MODEL.parameters
    assert request_of(read) == trainplan.api.request(**OWN)


def test_why_not_from_a_file(tmp_path: Path) -> None:
    """The plan's own choice is admitted at its own price; one GPU of four to a node is no choice at all."""
    read = read_plan(str(written(tmp_path, text())))
    model, request = model_of(read), request_of(read)
    same = why_not(model, request, read["decision"])
    assert same.broken == ()
    assert same.illegal == ""
    assert same.dearer_usd == pytest.approx(0.0, abs=1e-9)
    assert same.to_dict()["status"] == "admitted"
    three = why_not(model, request, read["decision"], num_gpus=3)
    assert three.to_dict()["status"] == "refused"
    assert three.illegal


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("\x00\x01", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        ("[" * 100_000, "too deep"),
        ('{"schema_version": 1, "schema_version": 1}', "twice"),
        ('{"schema_version": NaN}', "no JSON"),
        ("{}", "schema_version is None"),
        ('{"schema_version": 99}', "schema_version is 99"),
        ('{"schema_version": 1, "status": "no_plan"}', "status is 'no_plan'"),
        ('{"schema_version": 1, "status": "planned"}', "missing"),
        (f'{{"schema_version": "{"x" * 10_000}"}}', "schema_version is"),
    ],
)
def test_what_is_no_plan(tmp_path: Path, content: str | bytes, words: str) -> None:
    """Says what was found and what to do."""
    assert words in refused(written(tmp_path, content))


def test_a_truncated_plan(tmp_path: Path) -> None:
    """At any point."""
    for share in (0.01, 0.3, 0.6, 0.99):
        assert "not JSON" in refused(written(tmp_path, text()[: int(share * len(text()))]))


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """The limit is checked before a byte is parsed."""
    assert "larger than" in refused(written(tmp_path, b" " * (LARGEST_BYTES + 1)))


def test_what_is_no_file(tmp_path: Path) -> None:
    """Missing, a folder without a plan, a pipe that would block for ever, a name no system takes."""
    os.mkfifo(tmp_path / "pipe")
    for reference in (tmp_path / "missing", tmp_path, tmp_path / "pipe", "x" * 5000, "a\0b"):
        refused(reference)


def test_extra_keys_do_no_harm(tmp_path: Path) -> None:
    """A later version may add some; a key of the request is a question that we cannot answer."""
    spoilt = document()
    spoilt["comment"] = {"anything": [1]}
    assert read_plan(str(written(tmp_path, json.dumps(spoilt))))["comment"] == {"anything": [1]}
    spoilt["request"]["comment"] = 1
    assert "comment" in refused(written(tmp_path, json.dumps(spoilt)))


BELONGS: dict[str, type] = {
    "decision": dict, "given_up": str, "model": dict, "memory": dict, "time": dict, "stack": list, "request": dict,
    "decision.gpus": int, "decision.strategies": list, "decision.method": str, "decision.zero_stage": int,
    "decision.micro_batch": int, "decision.checkpointed_layers": int, "decision.cost_usd": float, "model.config": dict,
}  # fmt: skip
STRANGE: tuple[object, ...] = (None, True, -1, 1e40, "x", [], {}, [[[]]])
WRONG = [
    pytest.param(key, value, id=f"{key}-{value!r}")
    for key, kind in BELONGS.items()
    for value in STRANGE
    if type(value) is not kind or kind is dict or value in (-1, 1e40)  # an object without its keys is wrong too
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_types_are_named(tmp_path: Path, key: str, value: object) -> None:
    """Whatever stands where something else belongs, the answer is one line."""
    spoilt = document()
    *outer, last = key.split(".")
    (spoilt[outer[0]] if outer else spoilt)[last] = value
    refused(written(tmp_path, json.dumps(spoilt)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("require", ["no-such-strategy"]),
        ("forbid", ["no-such-strategy"]),
        ("require", ["zero-2", "zero-3"]),
        ("gpus", ["no-such-gpu"]),
        ("gpus", []),
        ("tokens", 10**30),
        ("gpu_count", 10**9),
        ("nodes", 10**9),
        ("max_gpus", 10**12),
        ("global_batch", 2**40),
        ("gpus_per_node", 10**9),
        ("lora_rank", 10**9),
        ("lora_targets", ["no_such_layer"]),
    ],
)
def test_a_request_that_makes_no_sense(tmp_path: Path, key: str, value: object) -> None:
    """The right type and yet no request of ours: refused or answered, never a traceback, never without end."""
    spoilt = document()
    spoilt["request"][key] = value
    path = written(tmp_path, json.dumps(spoilt))
    try:
        answer = asked(str(path), num_gpus=8)
    except InputError:
        refused(path)
    else:
        assert answer.to_dict()["status"] in ("refused", "admitted")
        assert "\n" not in answer.illegal


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("hidden_size", -1),
        ("vocab_size", "x"),
        ("model_type", "no_such"),
        ("num_attention_heads", 0),
    ],
)
def test_a_model_that_cannot_be(tmp_path: Path, key: str, value: object) -> None:
    """The configuration inside a plan is as untrusted as a config.json."""
    spoilt = document()
    spoilt["model"]["config"][key] = value
    refused(written(tmp_path, json.dumps(spoilt)))


def test_the_plans_own_choice_is_possible_at_the_same_cost() -> None:
    """What a choice leaves open stays as planned, the offer included: asking for the plan itself breaks nothing."""
    plan = trainplan.plan("llama-3-8b", gpus="h100", max_gpus=2)
    planned = plan.to_dict()["decision"]
    answer = why_not(plan.candidate.setting.model, plan.request, planned, num_gpus=planned["gpus"])
    assert answer.broken == ()
    assert answer.dearer_usd == pytest.approx(0, abs=1e-6)
