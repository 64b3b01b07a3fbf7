"""Which plans the owners of formats are shown: some of every requirement, and the golden ones."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from trainplan.planner.planfile import read_plan

from ..launch_cases import emitted, plans

TESTS = Path(__file__).parents[1]
SCHEMAS = TESTS / "data" / "schemas"
Document = dict[str, Any]


@cache
def shown(every: int = 6) -> dict[str, Document]:
    """Documents by name."""
    some = dict(list(plans().items())[::every])
    golden = {path.parent.name: read_plan(str(path)) for path in sorted((TESTS / "golden").glob("*/plan.json"))}
    return some | golden


def files_of(target: str, name: str) -> dict[str, str]:
    """What a target makes of a plan; nothing where it refuses it."""
    found = emitted(shown()[name])[1].get(target)
    return dict(found.files) if found else {}


def loaded(target: str, name: str, file: str) -> Document:
    """A YAML file of a target, read back; empty where it refuses the plan."""
    text = files_of(target, name).get(file)
    return dict(yaml.safe_load(text)) if text else {}


def schema(program: str) -> Document:
    """A schema that a program publishes, as of the version it names."""
    document: Document = json.loads((SCHEMAS / f"{program}.json").read_text(encoding="utf-8"))
    return document
