"""What DeepSpeed knows: reads configs/deepspeed.toml, which names type, default, effect and cost of every key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

ZERO = "zero_optimization"
ALL_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of ds_config.json."""

    path: str
    type: str
    default: Any
    kind: str  # used, deprecated, removed
    new: str  # what to write instead
    null: bool  # whether null is a value
    bools: bool  # whether true and false are numbers
    stages: tuple[int, ...]
    choices: tuple[Any, ...]
    least: float | None
    above: float | None
    most: float | None
    below: float | None
    cost: str  # ledger, nothing, spares, unknown
    auto: str
    effect: str
    against: Any  # what its cost is compared with; None: nothing
    together: tuple[str, ...]  # keys of the same section that change with it

    @property
    def name(self) -> str:
        """The key itself."""
        return self.path.rpartition(".")[2]

    @property
    def allowed(self) -> str:
        """What may be written.

        >>> key("zero_optimization.offload_optimizer.ratio").allowed
        'a number from 0.0 on up to 1.0'
        """
        if self.choices:
            return ", ".join(_json(choice) for choice in self.choices)
        words = {
            "bool": "true or false",
            "int": "a whole number",
            "float": "a number",
            "str": "a text",
            "list": "a list",
        }
        limits = (
            ("from {} on", self.least), ("above {}", self.above), ("up to {}", self.most), ("below {}", self.below),
        )  # fmt: skip
        bounds = [text.format(value) for text, value in limits if value is not None]
        return " ".join((words.get(self.type, "an object"), *bounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One object of ds_config.json; the path of the top level is empty."""

    path: str
    unknown: str  # error, ignored, free
    lax: bool
    alias: str
    cost: str
    effect: str
    keys: Mapping[str, Key]


def _json(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


@cache
def document() -> Mapping[str, Any]:
    """The whole file."""
    text = files("trainplan.configs").joinpath("deepspeed.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def sections() -> Mapping[str, Section]:
    """Every section by its path."""
    return {path: _section(path, row) for path, row in document()["sections"].items()}


def _section(path: str, row: Mapping[str, Any]) -> Section:
    prefix = f"{path}." if path else ""
    cost, alias = row.get("cost", "nothing"), row.get("alias", "")
    found = {name: _key(prefix + name, each, cost) for name, each in row["keys"].items()}
    return Section(
        path=path,
        unknown=row["unknown"],
        lax=bool(row.get("lax")),
        alias=alias,
        cost=cost,
        effect=row.get("effect", ""),
        keys=found,
    )


def _key(path: str, row: Mapping[str, Any], cost: str) -> Key:
    return Key(
        path=path,
        type=row["type"],
        default=row.get("default"),
        kind=row.get("kind", "used"),
        new=row.get("new", ""),
        null=bool(row.get("null")) or ("default" not in row and "." not in path) or row["type"] == "any",
        bools=bool(row.get("bools", True)),
        stages=tuple(row.get("stages", ALL_STAGES)),
        choices=tuple(row.get("choices", ())),
        least=row.get("least"),
        above=row.get("above"),
        most=row.get("most"),
        below=row.get("below"),
        cost=row.get("cost", cost),
        auto=row.get("auto", ""),
        effect=row["effect"],
        against=row.get("against"),
        together=tuple(row.get("together", ())),
    )


@cache
def keys() -> Mapping[str, Key]:
    """Every key by its path."""
    return {key.path: key for section in sections().values() for key in section.keys.values()}


def key(path: str) -> Key:
    """One key.

    Raises:
        KeyError: DeepSpeed has no such key.
    """
    return keys()[path]


def holds_section(path: str) -> bool:
    """Whether a path is a section, not a key."""
    return path in sections()
