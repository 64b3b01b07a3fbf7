"""Changes of a configuration's values, by dotted path; the values are never changed in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from .editing import REMOVE


def changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The document after all changes; sections that become empty go.

    >>> changed({"a": 1, "b": {"c": 2}}, {"b.c": "<remove>", "d.e": 3})
    {'a': 1, 'd': {'e': 3}}
    """
    found = copy.deepcopy(dict(document))
    for path, value in changes.items():
        if value == REMOVE:
            _remove(found, path.split("."))
        else:
            _set(found, path.split("."), value)
    return found


def effective(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that change something.

    >>> effective({"a": 1}, {"a": 1, "b": "<remove>", "c": 2})
    {'c': 2}
    """
    return {
        path: value for path, value in changes.items() if _at(document, path) != (None if value == REMOVE else value)
    }


def _at(document: Mapping[str, Any], path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _set(document: dict[str, Any], names: list[str], value: Any) -> None:
    for name in names[:-1]:
        inner = document.get(name)
        document[name] = inner if isinstance(inner, dict) else {}
        document = document[name]
    document[names[-1]] = copy.deepcopy(value)


def _remove(document: dict[str, Any], names: list[str]) -> None:
    first, *rest = names
    if not rest:
        document.pop(first, None)
        return
    inner = document.get(first)
    if isinstance(inner, dict):
        _remove(inner, rest)
        if not inner:
            del document[first]
