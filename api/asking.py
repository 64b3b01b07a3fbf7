"""What is asked: a model and a request, from what a user gives by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..planner.errors import InputError
from ..planner.hardware import Tier
from ..planner.machines import parse_gpus
from ..planner.model import Model
from ..planner.models import load_model
from ..planner.request import CHEAPEST, LARGEST_AMOUNT, Request, flag
from ..planner.units import parse_count, parse_duration_s
from ..planner.workload import Method

KERNELS: Mapping[str, tuple[str, ...]] = {"none": (), "liger": ("liger",)}
AMOUNTS = {flag(name).replace("-", "_"): name for name in LARGEST_AMOUNT}  # options by the request's names


def as_model(model: str | Model) -> Model:
    """The model itself, or the one that a reference means."""
    return load_model(model) if isinstance(model, str) else model


def request(**options: Any) -> Request:
    """A request from what a user gives: numbers or text such as "2B" and "14d"; None is "not given".

    Raises:
        InputError: a value that cannot be read.
    """
    kernels, compiled = options.pop("kernels", None), options.pop("compile", None)
    options["require"] = _with_kernels(kernels, compiled, options.get("require"))
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    values: dict[str, Any] = {}
    for key, value in given.items():
        values |= _option(key, value)
    return Request(**values, given=frozenset(values))


def _with_kernels(kernels: str | None, compiled: bool | None, require: Any) -> tuple[str, ...]:
    """What is required, kernels=... and compile=... being other words for strategies."""
    if (kernels or "none") not in KERNELS:
        raise InputError(f"--kernels: got {str(kernels)[:40]!r}; allowed are {' and '.join(KERNELS)}; write liger")
    names = (require,) if isinstance(require, str) else tuple(require or ())
    return tuple(dict.fromkeys((*names, *KERNELS[kernels or "none"], *(("torch-compile",) if compiled else ()))))


def _option(key: str, value: Any) -> dict[str, Any]:
    """One option under its name in Request."""
    if key == "gpus":
        names, number = parse_gpus(str(value))
        return {"gpus": names} | ({"gpu_count": number} if number else {})
    if key in ("tokens", "seq_len", "global_batch", "eval_tokens") and isinstance(value, str):
        return {key: parse_count(value, where=f"--{key.replace('_', '-')}")}
    if key == "deadline":
        return {"deadline_s": parse_duration_s(value, where="--deadline") if isinstance(value, str) else float(value)}
    if key == "checkpoint_every":
        seconds = parse_duration_s(value, where="--checkpoint-every") if isinstance(value, str) else float(value)
        return {"checkpoint_every_s": seconds}
    if key == "budget":
        return {"budget": _budget(value)}
    if key in AMOUNTS:
        return {AMOUNTS[key]: float(value)}
    if key in ("prices", "profile"):
        return {key: str(value)}
    if key == "tier":
        return {"tier": Tier(value)}
    if key == "method":
        methods = (value,) if isinstance(value, str | Method) else value
        return {"methods": tuple(Method(name) for name in methods)}
    if key in ("require", "forbid"):
        return {key: (value,) if isinstance(value, str) else tuple(value)}
    return {key: value}


def _budget(value: Any) -> float | str:
    """Dollars as a number, or "cheapest"."""
    if value == CHEAPEST:
        return CHEAPEST
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f'budget: not an amount, got {str(value)[:40]!r}; allowed are a number of dollars and "cheapest"'
        )
    return float(value)
