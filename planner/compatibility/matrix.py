"""The table of features against ZeRO stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .answer import Answer, answer
from .table import Facts, stated_facts, table
from .versions import Versions

STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One combination of features at every stage."""

    name: str
    answers: tuple[Answer, ...]


def matrix(names: Mapping[str, tuple[str, object]], *, versions: Versions | None = None) -> tuple[Line, ...]:
    """Each feature alone, then every combination of several that the table speaks of.

    Args:
        names: of features, with the fact and value of each; those of the stages are the columns.
        versions: by package; left out, the pinned ones.
    """
    lines: dict[str, Facts] = {name: dict([fact]) for name, fact in names.items() if fact[0] != "zero_stage"}
    usual = {name: facts for name, facts in lines.items() if not stated_facts(facts)}
    alone = {name: facts for name, facts in lines.items() if name not in usual}
    nothing: Facts = {}
    together = {_name(names, facts): facts for facts in _together()}
    return tuple(
        Line(name=name, answers=tuple(answer({**facts, "zero_stage": stage}, versions=versions) for stage in STAGES))
        for name, facts in {", ".join(usual): nothing, **alone, **together}.items()
    )


def _together() -> list[Facts]:
    """Combinations of two and more features that were tried at some stage."""
    found = (
        {key: value for key, value in stated_facts(combination).items() if key != "zero_stage"}
        for trial in table().trials
        for combination in trial.combinations
    )
    unique = {tuple(sorted(facts.items(), key=str)): facts for facts in found if len(facts) > 1}
    return [unique[key] for key in sorted(unique, key=str)]


def _name(names: Mapping[str, tuple[str, object]], facts: Facts) -> str:
    """The features by name, as typed."""
    return " ".join(name for name, (fact, value) in names.items() if facts.get(fact) == value)
