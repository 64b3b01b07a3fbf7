"""What cannot be combined: reads configs/compatibility.toml, which names reason and source of every refusal."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """One illegal combination."""

    when: tuple[tuple[str, tuple[object, ...]], ...]
    absent: tuple[str, ...]
    reason: str
    source: str
    instead: str

    def hits(self, facts: Mapping[str, object]) -> bool:
        """Whether these facts are the illegal combination."""
        return all(facts.get(key) in values for key, values in self.when) and not any(
            key in facts for key in self.absent
        )

    def message(self) -> str:
        """One line for people."""
        what = " with ".join(_words(key, values) for key, values in self.when)
        without = f" without {', '.join(self.absent).replace('_', ' ')}" if self.absent else ""
        return f"{what}{without}: {self.reason} ({self.source}); use {self.instead}"


def _words(key: str, values: tuple[object, ...]) -> str:
    """A condition for people.

    >>> _words("pipeline", (True,)), _words("zero_init", (False,)), _words("zero_stage", (2, 3))
    ('pipeline', 'no zero init', 'zero stage 2/3')
    """
    name = key.replace("_", " ")
    if isinstance(values[0], bool):
        return name if values[0] else f"no {name}"
    return f"{name} {'/'.join(map(str, values))}"


@cache
def refusals() -> tuple[Refusal, ...]:
    """The whole table."""
    text = files("trainplan.configs").joinpath("compatibility.toml").read_text(encoding="utf-8")
    return tuple(_refusal(row) for row in tomllib.loads(text)["refusal"])


def _refusal(row: Mapping[str, Any]) -> Refusal:
    when = tuple((key, tuple(values)) for key, values in row["when"].items())
    return Refusal(when, tuple(row.get("absent", ())), row["reason"], row["source"], row["instead"])


def refused(facts: Mapping[str, object]) -> Refusal | None:
    """The first refusal that these facts meet.

    >>> refused({"zero_stage": 2, "offload_parameters": "cpu"}).instead
    'zero-3'
    >>> refused({"zero_stage": 3, "offload_parameters": "cpu"}) is None
    True
    """
    return next((refusal for refusal in refusals() if refusal.hits(facts)), None)
