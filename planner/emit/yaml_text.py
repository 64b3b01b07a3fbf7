"""YAML files: written by PyYAML's safe dumper, which quotes what it must. Loaded when a target needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError

WIDTH = 1000  # characters: no value is broken over lines but those with line breaks of their own


def to_yaml(document: Mapping[str, Any], comments: Iterable[str] = ()) -> str:
    """Text of a YAML file: keys in the order given, texts with line breaks as blocks, comments at the top.

    Raises:
        InputError: PyYAML is not installed.

    >>> print(to_yaml({"a": [1, "yes"], "b": "x\\ny\\n"}, ["# top"]), end="")
    # top
    a:
    - 1
    - 'yes'
    b: |
      x
      y
    """
    try:
        import yaml
    except ImportError:
        raise InputError(
            "--for: this target is a YAML file, and PyYAML is not installed; install trainplan[yaml], or choose another"
        ) from None

    class Dumper(yaml.SafeDumper):
        """Safe, with blocks for texts of several lines, and no anchors."""

        def ignore_aliases(self, data: Any) -> bool:
            """Say values twice rather than by reference."""
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    body: str = yaml.dump(
        dict(document), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=WIDTH, default_flow_style=False
    )
    return "".join(f"{line}\n" for line in comments) + body
