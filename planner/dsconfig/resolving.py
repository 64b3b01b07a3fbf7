"""Every key's value in force: as written, as transformers puts it in the place of "auto", or DeepSpeed's default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .batch import Batch, batch_of
from .keys import ZERO, Key, keys, sections
from .problems import Unreadable, converted

AUTO = "auto"
FILE, HF, DEFAULT, OLD = "file", "auto", "default", "deprecated"
# transformers 5.23.0 training_args.py: learning_rate, adam_beta1 and 2, adam_epsilon, weight_decay, max_grad_norm
TRAINER_PARAMS = {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
TRAINER_CLIPPING = 1.0
PREFETCH_SHARE, PERSISTENCE_PER_HIDDEN = (
    0.9,
    10,
)  # transformers 5.23.0 integrations/deepspeed.py, trainer_config_finalize
HIDDEN_SIZED = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the training script says besides the file: the options of the command."""

    gpus: int
    hidden: int
    sequences: int  # global batch, where the file leaves it open
    micro_batch: int | None = None
    global_batch: int | None = None  # as given; None: not
    precision: str | None = None  # of --require bf16, fp16, fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One key in force, and who said so."""

    value: Any
    origin: str
    how: str = ""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """All keys in force."""

    values: Mapping[str, Value]
    written: frozenset[str]  # paths of keys and sections that stand in the file
    batch: Batch
    params: Mapping[str, Any] = field(default_factory=dict)  # of the optimizer, resolved
    hf: bool = False  # "auto" stands somewhere: the file is meant for transformers or accelerate
    precision_said: bool = True

    def __getitem__(self, path: str) -> Any:
        """The value in force."""
        return self.values[path].value

    def zero(self, name: str) -> Any:
        """The value in force of a key of zero_optimization."""
        return self[f"{ZERO}.{name}"]

    @property
    def autos(self) -> tuple[tuple[str, Any, str], ...]:
        """What each "auto" became: path, value, why."""
        found = [(path, v.value, v.how) for path, v in self.values.items() if v.origin == HF]
        return tuple(found)


def resolve(document: Mapping[str, Any], asked: Asked) -> Resolved:
    """Every key in force. Values that DeepSpeed refuses count as their defaults: the problems say so.

    Args:
        document: the file's values.
        asked: what the training script says.
    """
    raw = dict(_flat(document))
    values = {path: _value(key, raw, asked) for path, key in keys().items()}
    _renamed(values, raw)
    _stage_dependent(values, asked)
    said = _precision(values, raw, asked)
    sizes = {name: values[name].value for name in BATCH}
    batch = batch_of(sizes, frozenset(name for name in BATCH if raw.get(name) == AUTO), asked)
    for name, (number, how) in batch.filled.items():
        origin = HF if raw.get(name) == AUTO else DEFAULT
        values[name] = Value(value=number, origin=origin, how=how)
    params = {key: _param(key, value) for key, value in _object(document, "optimizer", "params").items()}
    values |= {
        f"optimizer.params.{key}": Value(value=params[key], origin=HF, how="TrainingArguments' default")
        for key, value in _object(document, "optimizer", "params").items()
        if value == AUTO
    }
    return Resolved(
        values=values,
        written=frozenset(raw) | frozenset(p for p in sections() if p and _section_of(document, p) is not None),
        batch=batch,
        params=params,
        hf=any(value == AUTO for path, value in raw.items() if not path.startswith(f"{ZERO}.zenflow.")),
        precision_said=said,
    )


BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def _param(key: str, value: Any) -> Any:
    return TRAINER_PARAMS.get(key) if value == AUTO else value


def _object(document: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A nested object; empty where it is none."""
    found: Any = document
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _section_of(document: Mapping[str, Any], path: str) -> Any:
    found: Any = document
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Paths and values of all keys; `bfloat16` under its new name; zero_optimization true is stage 1."""
    for name, value in document.items():
        if name == ZERO and isinstance(value, bool):
            yield f"{ZERO}.stage", int(value)
        elif name == "bfloat16" and "bf16" not in document and isinstance(value, Mapping):
            yield from _leaves("bf16", value)
        elif isinstance(value, Mapping) and name in sections():
            yield from _leaves(name, value)
        else:
            yield name, value


def _leaves(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        here = f"{path}.{name}"
        if isinstance(inner, Mapping) and here in sections():
            yield from _leaves(here, inner)
        else:
            yield here, inner


def _value(key: Key, raw: Mapping[str, Any], asked: Asked) -> Value:
    """One key, apart from the others."""
    if key.path not in raw:
        return Value(value=key.default, origin=DEFAULT)
    section = sections()[key.path.rpartition(".")[0]]
    if raw[key.path] == AUTO and key.default != AUTO:
        return _filled(key, asked)
    try:
        return Value(value=converted(key, raw[key.path], lax=section.lax), origin=FILE)
    except Unreadable:
        return Value(value=key.default, origin=DEFAULT)


def _filled(key: Key, asked: Asked) -> Value:
    """What "auto" becomes where no other key matters; where nobody fills it, DeepSpeed takes its default."""
    squared = asked.hidden**2
    known = {
        f"{ZERO}.stage": 2,
        f"{ZERO}.reduce_bucket_size": squared,
        f"{ZERO}.stage3_prefetch_bucket_size": int(PREFETCH_SHARE * squared),
        f"{ZERO}.stage3_param_persistence_threshold": PERSISTENCE_PER_HIDDEN * asked.hidden,
        f"{ZERO}.stage3_gather_16bit_weights_on_model_save": False,
        f"{ZERO}.offload_optimizer.device": "none",
        f"{ZERO}.offload_param.device": "none",
        "gradient_clipping": TRAINER_CLIPPING,
    }
    if key.path in known:
        return Value(value=known[key.path], origin=HF, how=key.auto)
    return Value(value=key.default, origin=HF, how="nobody fills it: DeepSpeed's default")


def _renamed(values: dict[str, Value], raw: Mapping[str, Any]) -> None:
    """Deprecated keys under their new names, where those are not written."""
    moved = (
        (f"{ZERO}.cpu_offload", f"{ZERO}.offload_optimizer.device", "cpu"),
        (f"{ZERO}.cpu_offload_param", f"{ZERO}.offload_param.device", "cpu"),
        (f"{ZERO}.stage3_gather_fp16_weights_on_model_save", f"{ZERO}.stage3_gather_16bit_weights_on_model_save", True),
    )
    for old, new, value in moved:
        if values[old].value is True and new not in raw:
            values[new] = Value(value=value, origin=OLD, how=old)


def _stage_dependent(values: dict[str, Value], asked: Asked) -> None:
    """overlap_comm by the stage; sizes that transformers fills at stage 3 alone."""
    stage = values[f"{ZERO}.stage"].value
    overlap = values[f"{ZERO}.overlap_comm"]
    if overlap.value is None:
        values[f"{ZERO}.overlap_comm"] = Value(value=stage == 3, origin=overlap.origin, how="true at stage 3 alone")
    for name in HIDDEN_SIZED[1:]:
        path = f"{ZERO}.{name}"
        if values[path].origin == HF and stage != 3:
            values[path] = Value(value=keys()[path].default, origin=HF, how="filled at stage 3 alone: the default")
    if values[f"{ZERO}.stage3_allgather_sequential"].value:
        values[f"{ZERO}.stage3_prefetch_bucket_size"] = Value(value=1, origin=DEFAULT, how="allgather_sequential")


def _precision(values: dict[str, Value], raw: Mapping[str, Any], asked: Asked) -> bool:
    """bf16 and fp16: as written; "auto" or absent: as --require says, else TrainingArguments' defaults, both false.

    Returns:
        Whether anybody said which precision it is.

    Source:
        transformers 5.23.0 ``trainer_config_process``; accelerate 1.15.0 ``set_mixed_precision`` adds absent sections.
    """
    said = asked.precision is not None
    for kind in ("bf16", "fp16"):
        path = f"{kind}.enabled"
        value = raw.get(path)
        if value is None or value == AUTO:
            how = f"--require {asked.precision}" if said else "TrainingArguments' default"
            other = any(raw.get(f"{k}.enabled") is True for k in ("bf16", "fp16") if k != kind)
            fill = asked.precision == kind and not other
            values[path] = Value(value=fill, origin=HF if value == AUTO else DEFAULT, how=how)
        else:
            said = True
    return said
