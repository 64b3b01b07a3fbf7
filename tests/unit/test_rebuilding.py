"""A plan file describes its candidate wholly: assessed again, it is the same."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from trainplan.api.rebuilding import candidate_of
from trainplan.planner.architectures import build_model
from trainplan.planner.compatibility import pinned
from trainplan.planner.documents import decision
from trainplan.planner.plan import core_document
from trainplan.planner.planfile import read_plan

ROOT = Path(__file__).parents[2]
PLANS = sorted((ROOT / "tests" / "golden").glob("*/plan.json"))


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.parent.name)
def test_a_plan_file_gives_its_candidate_back(path: Path) -> None:
    """Decision, memory, time, cost and both configurations are those of the file."""
    document = read_plan(str(path))
    again = core_document(candidate_of(document))
    again["model"]["note"] = document["model"]["note"]
    assert again == {key: document[key] for key in again}


def test_fewer_layers_keep_the_decision() -> None:
    """Another model of the same family takes the plan's stack, with no more checkpointed layers than it has."""
    document = read_plan(str(PLANS[0]))
    config = dict(document["model"]["config"], num_hidden_layers=2)
    small = candidate_of(document, model=build_model(config, name="small", source="tests"))
    kept = ("gpus", "zero_stage", "micro_batch", "gradient_accumulation_steps", "offload_ratio")
    assert [decision(small)[key] for key in kept] == [document["decision"][key] for key in kept]
    assert small.layers <= 2


def test_versions_are_those_of_the_extra() -> None:
    """What a plan says it is for is what ``pip install 'trainplan[train]'`` gives."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    exact = dict(line.split("==") for line in project["optional-dependencies"]["train"] if "==" in line)
    assert exact == dict(pinned())
