"""A ds_config.json as it lies on disk: bounded in size, with comments, nothing of it executed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .syntax import DEEPEST, SyntaxProblem, TooManyKeys, is_strict, parse

LARGEST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigText:
    """The text, its values, and how it may be read."""

    name: str
    text: str
    values: Mapping[str, Any]
    duplicates: tuple[str, ...] = ()
    strict: bool = True  # accelerate's json.load takes it
    placed: bool = True  # places of values are known, so that edits leave the rest alone


def read(path: str) -> ConfigText:
    """Read a file.

    Raises:
        InputError: it cannot be read, is too large, or is no JSON.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path[:200]}: cannot be read, {reason}; give a ds_config.json") from None
    if len(raw) > LARGEST_BYTES:
        raise InputError(f"{path}: more than {LARGEST_BYTES:,} bytes; a ds_config.json has some thousand; give one")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8, at byte {error.start}; a JSON text is needed; save it as UTF-8") from None
    return from_text(text, name=path)


def from_text(text: str, *, name: str) -> ConfigText:
    """Read a text.

    Raises:
        InputError: it is no JSON, or no object.
    """
    try:
        root, duplicates = parse(text)
        values, placed = root.value, True
    except SyntaxProblem as problem:
        values, duplicates, placed = _hjson(text, name, problem), (), False
    except TooManyKeys as problem:
        raise InputError(f"{name}: {problem}, DeepSpeed knows some 250; give a ds_config.json") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: {type(values).__name__} at the top, an object is needed; write {{...}}")
    return ConfigText(name=name, text=text, values=values, duplicates=duplicates, strict=is_strict(text), placed=placed)


def from_mapping(values: Mapping[str, Any], *, name: str = "ds_config") -> ConfigText:
    """A configuration that is a dictionary already.

    Raises:
        InputError: it holds what JSON cannot.
    """
    try:
        text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: no JSON, {error}; only texts, numbers, lists and objects are allowed") from None
    return from_text(text, name=name)


def _hjson(text: str, name: str, problem: SyntaxProblem) -> Any:
    """What hjson makes of it, where it is installed: DeepSpeed reads with it, and needs it itself."""
    missing = f"{name}: {problem}; JSON is needed, comments and trailing commas may be in it; mend that line"
    try:
        hjson = importlib.import_module("hjson")
    except ImportError:
        raise InputError(missing) from None
    try:
        values = json.loads(json.dumps(hjson.loads(text), allow_nan=False))
    except (ValueError, TypeError, RecursionError):
        raise InputError(missing) from None
    if _depth(values) > DEEPEST:
        raise InputError(f"{name}: nested deeper than {DEEPEST} levels; DeepSpeed's sections have four; flatten it")
    return values


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max((_depth(each) for each in inner), default=0)
