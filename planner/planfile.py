"""Read plan.json back. It is untrusted: size, shape and types are checked, nothing of it is executed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .architectures import build_model
from .documents import SCHEMA_VERSION
from .errors import InputError
from .model import Model
from .models import parse_config
from .request import Request, request_from
from .workload import Method

LARGEST_BYTES = 8 * 2**20
AGAIN = "plan again with this version of trainplan"
LARGEST_NUMBER = 1e30
LONGEST_KEY = 40  # characters of an unknown key that a note repeats

# The shape of what is read: a type, a set of allowed texts, [of each], {key: of each}; "key?" may be missing or null.
_TEXT, _COUNT, _NUMBER, _FLAG, _ANY = "text", "a whole number", "a number", "true or false", "anything"
_ENTRY = {
    "item": _TEXT,
    "section": _TEXT,
    "bytes": _COUNT,
    "upper_bytes": _COUNT,
    "phases": [_TEXT],
    "why": _TEXT,
    "certainty": _TEXT,
    "source": _TEXT,
}
_STORE = {"capacity_bytes?": _COUNT, "upper_bound_bytes": _COUNT, "entries": [_ENTRY]}
SHAPE: Mapping[str, Any] = {
    "decision": {
        "gpus": _COUNT,
        "nodes": _COUNT,
        "gpu": _TEXT,
        "offer": _TEXT,
        "method": _TEXT,
        "zero_stage": _COUNT,
        "strategies": [_TEXT],
        "micro_batch": _COUNT,
        "gradient_accumulation_steps": _COUNT,
        "data_parallel_world_size?": _COUNT,
        "checkpointed_layers": _COUNT,
        "offload_ratio?": _NUMBER,
        "hours": _NUMBER,
        "cost_usd": _NUMBER,
        "gpus_per_node": _COUNT,
        "usd_per_node_hour": _NUMBER,
        "tier": _TEXT,
        "region": _TEXT,
        "price_date": _TEXT,
    },
    "given_up": _TEXT,
    "model": {
        "name": _TEXT,
        "source": _TEXT,
        "note?": _TEXT,
        "parameters": _COUNT,
        "trainable_parameters": _COUNT,
        "config": _ANY,
    },
    "memory": {"gpu": _STORE, "host": _STORE, "nvme": _STORE},
    "time": {
        "step_s": _NUMBER,
        "step_s_low?": _NUMBER,
        "step_s_upper?": _NUMBER,
        "rests_on?": _ANY,
        "terms": [
            {
                "name": _TEXT,
                "seconds_per_step": _NUMBER,
                "exposed_s": _NUMBER,
                "limited_by": _TEXT,
                "amount?": _NUMBER,
                "figure?": _TEXT,
                "kind?": _TEXT,
                "source": _TEXT,
            }
        ],
    },
    "cost": {
        "hours": _NUMBER,
        "kwh?": _NUMBER,
        "kgco2?": _NUMBER,
        "run": {
            "lines": [{"name": _TEXT, "hours": _NUMBER, "share": _NUMBER, "why": _TEXT, "source": _TEXT}],
            "goodput": _NUMBER,
            "checkpoint_bytes": _COUNT,
            "checkpoint_write_h": _NUMBER,
            "checkpoint_interval_h": _NUMBER,
            "hours_between_failures": _NUMBER,
            "failures": _NUMBER,
        },
    },
    "stack": [
        {
            "strategy": _TEXT,
            "allocated_bytes": _COUNT,
            "host_bytes_per_node": _COUNT,
            "step_s": _NUMBER,
            "deepspeed": {},
        }
    ],
    "warnings": [_TEXT],
    "request": {},
    "adapters?": {"rank": _COUNT, "alpha?": _NUMBER, "target_modules": _ANY, "dropout": _NUMBER},
    "training?": {
        "model?": _TEXT,
        "precision": _TEXT,
        "attn_implementation": _TEXT,
        "packed": _FLAG,
        "seq_len": _COUNT,
        "global_batch": _COUNT,
        "steps": _COUNT,
        "checkpointing": {"layers": _COUNT, "of": _COUNT, "on_host": _FLAG},
        "loss_chunk_tokens": _COUNT,
        "zero_init": _FLAG,
        "quantization?": {
            "quant_type": _TEXT,
            "double_quant": _FLAG,
            "block_size": _COUNT,
            "compute_dtype": _TEXT,
            "storage_dtype": _TEXT,
        },
        "optimizer": {"name": _TEXT, "from": _TEXT},
        "liger": _FLAG,
        "compile": _FLAG,
        "save_every_steps": _COUNT,
        "versions": {},
    },
    "ds_config?": {},
}
# What else stands in a plan, for people and other programs: it is not read back.
UNREAD = (
    "schema_version", "status", "alternatives", "frontier", "day_sooner", "assumptions", "binding", "constraints",
    "dropped", "solver", "launch",
)  # fmt: skip


def read_plan(reference: str) -> dict[str, Any]:
    """A plan file, or the plan of a folder.

    Raises:
        InputError: missing, no file, too large, no JSON, another version, or no plan.
    """
    path = Path(reference)
    try:
        path = path / "plan.json" if path.is_dir() else path
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file; give a plan.json or its folder")
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{reference[:200]}: cannot be read, {reason}; give a plan.json or its folder") from error
    if len(data) > LARGEST_BYTES:
        raise InputError(f"{path}: larger than {LARGEST_BYTES:,} bytes, as no plan is; give a plan.json or its folder")
    document = dict(parse_config(data, where=str(path), wanted="a plan.json"))
    _check(document, path)
    return document


def _check(document: dict[str, Any], path: Path) -> None:
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version is {repr(version)[:40]}; this trainplan reads {SCHEMA_VERSION}; {AGAIN}"
        )
    if document.get("status") != "planned":
        raise InputError(
            f"{path}: status is {str(document.get('status'))[:40]!r}; only a planned one can be explained; {AGAIN}"
        )
    wrong = next(_wrong(document, SHAPE, ""), None)
    if wrong is None and document["decision"]["method"] not in {m.value for m in Method}:
        wrong = "decision.method is no method"
    if (
        wrong is None
        and min(document["decision"][key] for key in ("gpus", "nodes", "gpus_per_node", "micro_batch")) < 1
    ):
        wrong = "decision has no GPUs, nodes or micro-batch"
    if wrong:
        raise InputError(f"{path}: {wrong}; this is no plan.json as trainplan writes it; {AGAIN}")


def _wrong(value: Any, shape: Any, where: str) -> Iterator[str]:
    """What differs from a shape, in the order of the shape."""
    if isinstance(shape, str):
        if not _is(value, shape):
            yield f"{where} is {repr(value)[:40]}, not {shape}"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{where} is {repr(value)[:40]}, not a list"
            return
        for index, item in enumerate(value):
            yield from _wrong(item, shape[0], f"{where}[{index}]")
    elif not isinstance(value, dict):
        yield f"{where} is {repr(value)[:40]}, not an object"
    else:
        yield from _wrong_keys(value, shape, where)


def _wrong_keys(value: dict[str, Any], shape: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, inner in shape.items():
        key = name.removesuffix("?")
        if value.get(key) is None and name.endswith("?"):
            continue
        path = f"{where}.{key}" if where else key
        if key not in value:
            yield f"{path} is missing"
        else:
            yield from _wrong(value[key], inner, path)


def _is(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a kind: numbers are finite and not negative, texts hold no control characters."""
    if kind == _TEXT:
        return isinstance(value, str) and value.isprintable()  # no escape sequences for the terminal
    if kind == _COUNT:
        return type(value) is int and 0 <= value <= LARGEST_NUMBER
    if kind == _NUMBER:
        return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= LARGEST_NUMBER
    if kind == _FLAG:
        return isinstance(value, bool)
    return kind == _ANY


def unknown_keys(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys at the top of a plan that no trainplan wrote, printable.

    >>> unknown_keys({"decision": {}, "solver": {}, "my notes": 1})
    ('my notes',)
    """
    known = {*UNREAD, *(name.removesuffix("?") for name in SHAPE)}
    return tuple(
        "".join(c if c.isprintable() else "?" for c in key[:LONGEST_KEY]) for key in document if key not in known
    )


def model_of(document: Mapping[str, Any]) -> Model:
    """The plan's model, built from the configuration the plan carries."""
    row = document["model"]
    if not isinstance(row["config"], dict):
        raise InputError(f"plan: model.config is {repr(row['config'])[:40]}, not an object; {AGAIN}")
    return build_model(row["config"], name=row["name"], source=row["source"])


def request_of(document: Mapping[str, Any]) -> Request:
    """The plan's request."""
    return request_from(document["request"], where="plan")
