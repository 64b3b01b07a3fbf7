"""What other programs call clouds, accelerators and runtimes: configs/launch.toml."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def known_names(program: str) -> dict[str, Any]:
    """One program's table.

    >>> known_names("skypilot")["accelerators"]["a100-80"]
    'A100-80GB'
    """
    import tomllib
    from importlib.resources import files

    text = files("trainplan.configs").joinpath("launch.toml").read_text(encoding="utf-8")
    found: dict[str, Any] = tomllib.loads(text)[program]
    return found
