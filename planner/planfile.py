"""Read plan.json back. It is untrusted: size and shape are checked, nothing of it is executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .architectures import build_model
from .errors import InputError
from .model import Model
from .models import parse_config
from .plan import SCHEMA_VERSION
from .request import Request, request_from

LARGEST_BYTES = 8 * 2**20
AGAIN = "plan again with this version of trainplan"
SHAPE: Mapping[str, type | tuple[type, ...]] = {
    "decision": dict,
    "given_up": str,
    "model": dict,
    "memory": dict,
    "time": dict,
    "stack": list,
    "request": dict,
}


def read_plan(reference: str) -> dict[str, Any]:
    """A plan file, or the plan of a folder.

    Raises:
        InputError: missing, too large, no JSON, another version, or no plan.
    """
    path = Path(reference)
    path = path / "plan.json" if path.is_dir() else path
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise InputError(
                f"{path}: {path.stat().st_size:,} bytes; a plan has at most {LARGEST_BYTES:,}; is this a plan.json?"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{reference}: cannot be read, {getattr(error, 'strerror', None) or error}; give a plan.json or its folder"
        ) from error
    document = dict(parse_config(data, where=str(path)))
    _check(document, path)
    return document


def _check(document: dict[str, Any], path: Path) -> None:
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema_version is {version!r}; this trainplan reads {SCHEMA_VERSION}; {AGAIN}")
    if document.get("status") != "planned":
        raise InputError(f"{path}: status is {document.get('status')!r}; only a planned one can be explained; {AGAIN}")
    wrong = [key for key, kind in SHAPE.items() if not isinstance(document.get(key), kind)]
    if wrong:
        raise InputError(f"{path}: {', '.join(wrong)} missing or of a wrong type; {AGAIN}")


def model_of(document: Mapping[str, Any]) -> Model:
    """The plan's model, built from the configuration the plan carries."""
    row = document["model"]
    if not isinstance(row.get("config"), dict):
        raise InputError(f"plan: its model has no config; {AGAIN}")
    return build_model(row["config"], name=str(row.get("name")), source=str(row.get("source")))


def request_of(document: Mapping[str, Any]) -> Request:
    """The plan's request."""
    return request_from(document["request"], where="plan")
