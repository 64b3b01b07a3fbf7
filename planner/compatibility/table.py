"""configs/compatibility.toml as values: what cannot be combined, what was tried, what changed between versions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from types import MappingProxyType
from typing import Any

Facts = Mapping[str, object]
Conditions = tuple[tuple[str, tuple[object, ...]], ...]
UNSTATED = (None, False)  # values that say as little as a fact that is not stated; zero_init = False says much
FILE = "compatibility.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One illegal combination, in all versions known or in some."""

    when: Conditions
    absent: tuple[str, ...]
    reason: str
    source: str
    instead: str
    versions: Mapping[str, str]  # by package: a specifier of PEP 440
    shown_by: str  # "parser", "engine", or a test's path and name; empty where nothing shows it here
    error: str  # part of what DeepSpeed says, where it says something
    with_config: Mapping[str, Any]  # keys of ds_config that make the combination, where no strategy emits them

    def hits(self, facts: Facts) -> bool:
        """Whether these facts are the illegal combination."""
        return all(facts.get(key) in values for key, values in self.when) and not any(
            key in facts for key in self.absent
        )

    def message(self) -> str:
        """One line for people."""
        return f"{self.what()}{self.known_for()}: {self.reason} ({self.source}); use {self.instead}"

    def what(self) -> str:
        """The combination for people."""
        without = f" without {', '.join(self.absent).replace('_', ' ')}" if self.absent else ""
        return " with ".join(words(key, values) for key, values in self.when) + without

    def known_for(self) -> str:
        """The versions it is known for, if only some."""
        limits = (f"{package} {specifier}" for package, specifier in self.versions.items())
        return f" ({', '.join(limits)})" if self.versions else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Combinations that were run on a real engine here, or that a source says run: one for each choice of values."""

    when: Conditions
    status: str  # runs or documented
    versions: Mapping[str, str]  # empty: the pinned ones, exactly
    source: str
    date: str
    proof: tuple[str, ...]  # tests, one for all combinations or one for each in their order
    with_config: Mapping[str, Any]  # as of a refusal

    @property
    def combinations(self) -> tuple[dict[str, object], ...]:
        """Each choice of one value for every fact, the last fact changing fastest."""
        keys = [key for key, _ in self.when]
        return tuple(dict(zip(keys, values, strict=True)) for values in product(*(values for _, values in self.when)))

    def shows(self, facts: Facts) -> bool:
        """Whether it is about this very combination and nothing more."""
        stated = stated_facts(facts)
        return any(stated_facts(combination) == stated for combination in self.combinations)

    def parts_of(self, facts: Facts) -> Iterator[dict[str, object]]:
        """Its combinations that the facts contain, and add to."""
        stated = stated_facts(facts)
        yield from (c for c in self.combinations if stated_facts(c).items() < stated.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What another version does differently, without a refusal."""

    package: str
    versions: str
    what: str
    advice: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A name that `trainplan support` knows beyond strategies: no plan states it."""

    name: str
    fact: str
    value: object
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The whole file."""

    pinned: Mapping[str, str]
    needed: Mapping[str, Mapping[str, Sequence[object]]]  # by package: facts with which it matters
    usual: Facts
    features: tuple[Feature, ...]
    refusals: tuple[Refusal, ...]
    trials: tuple[Trial, ...]
    changes: tuple[Change, ...]


@cache
def table() -> Table:
    """The file, read once."""
    text = files("trainplan.configs").joinpath(FILE).read_text(encoding="utf-8")
    rows = tomllib.loads(text)
    return Table(
        pinned=MappingProxyType(rows["pinned"]),
        needed=MappingProxyType(rows["needed"]),
        usual=MappingProxyType(rows["usual"]),
        features=tuple(Feature(**row) for row in rows["feature"]),
        refusals=tuple(_refusal(row) for row in rows["refusal"]),
        trials=tuple(_trial(row) for row in rows["trial"]),
        changes=tuple(Change(**row) for row in rows["change"]),
    )


def _refusal(row: Mapping[str, Any]) -> Refusal:
    return Refusal(
        when=_conditions(row),
        absent=tuple(row.get("absent", ())),
        reason=row["reason"],
        source=row["source"],
        instead=row["instead"],
        versions=MappingProxyType(row.get("versions", {})),
        shown_by=row.get("shown_by", ""),
        error=row.get("error", ""),
        with_config=MappingProxyType(row.get("with_config", {})),
    )


def _trial(row: Mapping[str, Any]) -> Trial:
    return Trial(
        when=_conditions(row),
        status=row["status"],
        versions=MappingProxyType(row.get("versions", {})),
        source=row["source"],
        date=row["date"],
        proof=tuple(row.get("proof", ())),
        with_config=MappingProxyType(row.get("with_config", {})),
    )


def _conditions(row: Mapping[str, Any]) -> Conditions:
    return tuple((key, tuple(values)) for key, values in row["when"].items())


def stated_facts(facts: Facts) -> dict[str, object]:
    """What facts say beyond the usual.

    >>> stated_facts({"method": "full", "optimizer": "lion", "partial_share": False, "zero_init": False})
    {'optimizer': 'lion', 'zero_init': False}
    """
    usual = table().usual
    return {
        key: value
        for key, value in facts.items()
        if value != usual.get(key) and (key == "zero_init" or not any(value is nothing for nothing in UNSTATED))
    }


def words(key: str, values: tuple[object, ...]) -> str:
    """A condition for people.

    >>> words("pipeline", (True,)), words("zero_init", (False,)), words("zero_stage", (2, 3))
    ('pipeline', 'no zero init', 'zero stage 2/3')
    """
    name = key.replace("_", " ")
    if isinstance(values[0], bool):
        return name if values[0] else f"no {name}"
    return f"{name} {'/'.join(map(str, values))}"
