"""Edits of a configuration's text: one value set, one key added or taken out; order, spaces and comments stay."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from .syntax import Node, find, parse

REMOVE = "<remove>"  # no value that JSON can hold here: DeepSpeed has no such word


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """The text with every change; a path's value of REMOVE takes the key out.

    >>> edited('{"a": 1, "b": {"c": 2}}', {"a": 5, "b.c": REMOVE, "b.d": [1]})
    '{"a": 5, "b": {"d": [1]}}'
    """
    for path, value in changes.items():
        text = text if value == REMOVE else _set(text, path, value)
    for path in (path for path, value in changes.items() if value == REMOVE):
        text = _removed(text, path)
    return text


def unified(before: str, after: str, name: str, other: str) -> str:
    """A unified diff; empty where nothing changed."""
    lines = difflib.unified_diff(_lines(before), _lines(after), name, other, n=3)
    return "".join(lines)


def _lines(text: str) -> list[str]:
    return [line + "\n" for line in text.splitlines()]


def _set(text: str, path: str, value: Any) -> str:
    root, _ = parse(text)
    node = find(root, path)
    if node is None:
        return _added(text, root, path, value)
    written = _written(value, _indent(text, node.start), _step(text))
    return text[: node.start] + written + text[node.end :]


def _added(text: str, root: Node, path: str, value: Any) -> str:
    """A new member at the end of its object, which is made where it is not there."""
    parent, _, name = path.rpartition(".")
    place = find(root, parent) if parent else root
    if place is None or not isinstance(place.value, dict):
        return _set(text, parent, {name: value})
    over_lines = "\n" in text[place.start : place.end] or not place.members
    indent, step = _indent(text, place.start), _step(text) if over_lines else ""
    if not place.members:
        spread = bool(step)
        inner = f"\n{indent}{step}" if spread else ""
        body = f"{inner}{json.dumps(name)}: {_written(value, indent + step, step)}"
        return text[: place.start] + "{" + body + (f"\n{indent}" if spread else "") + "}" + text[place.end :]
    _, start, last = place.members[-1]
    line = text.rfind("\n", 0, start)
    own_line = line > place.start and not text[line + 1 : start].strip()
    between = f",\n{text[line + 1 : start]}" if own_line else ", "
    here = text[line + 1 : start] if own_line else indent
    member = f"{between}{json.dumps(name)}: {_written(value, here, step)}"
    return text[: last.end] + member + text[last.end :]


def _removed(text: str, path: str) -> str:
    """Without a member: with its comma and its line; an object that becomes empty goes too."""
    root, _ = parse(text)
    parent, _, name = path.rpartition(".")
    place = find(root, parent) if parent else root
    if place is None:
        return text
    index = next((i for i, (key, _, _) in reversed(list(enumerate(place.members))) if key == name), None)
    if index is None:
        return text
    if len(place.members) == 1 and parent:
        return _removed(text, parent)
    if len(place.members) == 1:
        return text[: place.start] + "{}" + text[place.end :]
    _, start, node = place.members[index]
    if index + 1 < len(place.members):  # up to the next key
        return text[:start] + text[place.members[index + 1][1] :]
    return text[: place.members[index - 1][2].end] + text[node.end :]


def _indent(text: str, at: int) -> str:
    """Spaces at the start of the line."""
    start = text.rfind("\n", 0, at) + 1
    found = re.match(r"[ \t]*", text[start:])
    return found.group() if found else ""


def _step(text: str) -> str:
    """One level's indentation, as the file has it; none in a file of one line."""
    found = re.search(r"\n([ \t]+)\S", text)
    return found.group(1) if found else ""


def _written(value: Any, indent: str, step: str) -> str:
    """Objects over lines where there is an indentation, everything else on one."""
    if not isinstance(value, dict) or not value or not step:
        return json.dumps(value)
    inner = indent + step
    members = [f"{inner}{json.dumps(key)}: {_written(each, inner, step)}" for key, each in value.items()]
    return "{\n" + ",\n".join(members) + f"\n{indent}}}"
