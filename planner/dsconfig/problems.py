"""What DeepSpeed refuses or never reads in a configuration: types, ranges, removed, unknown and repeated keys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import did_you_mean
from .editing import REMOVE
from .findings import Finding, Severity, shown
from .keys import Key, Section, sections
from .reading import ConfigText

TRUE, FALSE = ("true", "1", "yes", "on", "y", "t"), ("false", "0", "no", "off", "n", "f")
CONFIG = "DeepSpeed 0.19.8 runtime/config.py"
MODELS = "DeepSpeed 0.19.8 runtime/config_utils.py, DeepSpeedConfigModel: extra is forbidden"


class Unreadable(Exception):
    """A value that is not of its key's type."""


def problems(config: ConfigText) -> tuple[Finding, ...]:
    """Everything wrong or ineffective in the file itself, in the order of its keys."""
    return (*_whole(config), *_in_section(config.values, sections()[""]))


def _whole(config: ConfigText) -> Iterator[Finding]:
    for path in config.duplicates:
        yield Finding(
            severity=Severity.ERROR, rule="duplicate-key", path=path, given="twice",
            why="DeepSpeed refuses a file in which a key stands twice", instead="keep one of them",
            source="DeepSpeed 0.19.8 runtime/config_utils.py, dict_raise_error_on_duplicate_keys",
        )  # fmt: skip
    if not config.strict:
        yield Finding(
            severity=Severity.NOTE, rule="not-strict-json", path="", given="comments, trailing commas or bare words",
            why="DeepSpeed reads it with hjson; transformers and accelerate use json.load, which refuses it",
            instead="take them out before a Trainer or Accelerator reads it",
            source="accelerate 1.15.0 utils/deepspeed.py, HfDeepSpeedConfig; DeepSpeed 0.19.8 runtime/config.py",
        )  # fmt: skip


def _in_section(values: Mapping[str, Any], section: Section) -> Iterator[Finding]:
    """One section: its keys, and the sections inside."""
    prefix = f"{section.path}." if section.path else ""
    for name, value in values.items():
        path = prefix + name
        inner = sections().get(path)
        if inner is not None:
            yield from _inner(path, value, inner)
        elif name in section.keys:
            yield from _of_key(section.keys[name], value, section)
        elif section.unknown != "free":
            yield _unknown(path, name, value, section)


def _inner(path: str, value: Any, section: Section) -> Iterator[Finding]:
    section = sections()[section.alias] if section.alias else section
    if isinstance(value, dict):
        yield from _in_section(value, section)
    elif value is not None or section.path in ("zero_optimization", ""):
        yield _wrong(path, value, "an object", "no object", section.lax)


def _unknown(path: str, name: str, value: Any, section: Section) -> Finding:
    here = [*section.keys, *(p.rpartition(".")[2] for p in sections() if p and p.rpartition(".")[0] == section.path)]
    near = did_you_mean(name[:60], here).removeprefix("; ")
    forbidden = section.unknown == "error"
    why = "DeepSpeed refuses keys that it does not know here" if forbidden else "DeepSpeed never reads it"
    return Finding(
        severity=Severity.ERROR if forbidden else Severity.WASTEFUL,
        rule="unknown-key", path=path[:120], given=shown(value),
        why=f"no such key; {why}", instead=near or "take it out",
        source=MODELS if forbidden else f"{CONFIG}: nobody asks for it",
        changes=((path, REMOVE),),
    )  # fmt: skip


def _of_key(key: Key, value: Any, section: Section) -> Iterator[Finding]:
    if key.kind == "removed":
        yield Finding(
            severity=Severity.ERROR, rule="removed-key", path=key.path, given=shown(value),
            why=f"{key.effect}: removed, DeepSpeed raises DeepSpeedConfigError",
            instead=f"use {key.new}" if key.new else "take it out", source=CONFIG, changes=((key.path, REMOVE),),
        )  # fmt: skip
        return
    if key.kind == "deprecated":
        yield _deprecated(key, value)
    try:
        converted(key, value, lax=section.lax)
    except Unreadable as error:
        yield _wrong(key.path, value, key.allowed, str(error), section.lax)


def _deprecated(key: Key, value: Any) -> Finding:
    return Finding(
        severity=Severity.NOTE, rule="deprecated-key", path=key.path, given=shown(value),
        why=f"deprecated; it means {key.effect}", instead=f"write {key.new}",
        source="DeepSpeed 0.19.8 runtime/zero/config.py",
    )  # fmt: skip


def _wrong(path: str, value: Any, allowed: str, what: str, lax: bool) -> Finding:
    refused = "DeepSpeed refuses it" if lax else "DeepSpeed does not check it, and fails later"
    return Finding(
        severity=Severity.ERROR, rule="wrong-value", path=path, given=shown(value), why=f"{what}; {refused}",
        instead=f"allowed is {allowed}", source=CONFIG,
    )  # fmt: skip


def converted(key: Key, value: Any, *, lax: bool) -> Any:
    """A value as its key's type; "auto" stays.

    Raises:
        Unreadable: it is of another type, or out of range.
    """
    if value == "auto" and (lax or key.auto or key.default == "auto"):
        return value
    if value is None:
        if key.null:
            return value
        raise Unreadable("null")
    found = _typed(key, value, lax=lax)
    if key.choices and found not in key.choices:
        raise Unreadable("not among its values")
    if isinstance(found, int | float) and not isinstance(found, bool) and not _in_range(key, found):
        raise Unreadable("out of range")
    return found


def _in_range(key: Key, value: float) -> bool:
    return (
        math.isfinite(value)
        and (key.least is None or value >= key.least)
        and (key.above is None or value > key.above)
        and (key.most is None or value <= key.most)
        and (key.below is None or value < key.below)
    )


def _typed(key: Key, value: Any, *, lax: bool) -> Any:
    """pydantic turns "5", 5.0 and true into numbers; elsewhere nothing is turned into anything."""
    if key.type == "any":
        return value
    if key.type in ("int", "float"):
        return _number(key, value, lax=lax)
    if key.type == "bool":
        return _bool(value, lax=lax)
    expected = {"str": str, "list": list, "object": dict}[key.type]
    if not isinstance(value, expected):
        raise Unreadable(f"no {({'str': 'text'}).get(key.type, key.type)}")
    return value


def _bool(value: Any, *, lax: bool) -> bool:
    if isinstance(value, bool):
        return value
    if lax and isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if lax and isinstance(value, str) and value.lower() in (*TRUE, *FALSE):
        return value.lower() in TRUE
    raise Unreadable("no bool")


def _number(key: Key, value: Any, *, lax: bool) -> int | float:
    if isinstance(value, str) and lax:
        try:
            value = float(value) if key.type == "float" else int(value)
        except ValueError:
            raise Unreadable("no number") from None
    if isinstance(value, bool) and not (lax and key.bools):
        raise Unreadable("no number")
    if not isinstance(value, int | float):
        raise Unreadable("no number")
    if key.type == "float":
        return float(value)
    if not math.isfinite(value) or value != int(value):
        raise Unreadable("no whole number")
    return int(value)
