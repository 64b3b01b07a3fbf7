"""What a configuration means for memory and time: sizes and devices as values, and what is not modelled, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..knobs import Knobs
from ..workload import Precision
from .keys import ZERO, keys, sections
from .resolving import Resolved

# DeepSpeed 0.19.8 runtime/config.py, DtypeEnum
TYPES = {
    **dict.fromkeys(("fp32", "float32", "float", "torch.float32"), Precision.FP32),
    **dict.fromkeys(("bf16", "bfloat16", "torch.bfloat16"), Precision.BF16),
    **dict.fromkeys(("fp16", "float16", "half", "torch.float16"), Precision.FP16),
}
ADAMS = ("adam", "adamw")
LOWERED = ("adagrad", "adam", "adamw", "lamb", "muadam", "muadamw", "musgd", "lion", "muon")  # runtime/config.py
# torch 2.13.0 torch.optim, less those in DeepSpeed's own list; compared with the installed torch by the tests
TORCH = (
    "ASGD", "Adadelta", "Adafactor", "Adamax", "LBFGS", "Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD",
    "SparseAdam",
)  # fmt: skip
COUNTED = (*ADAMS, "adagrad", "lamb", "lion", "Adafactor", "SGD")  # whose sizes are known: strategies/given.py
PIPELINED_BUFFERS = 3  # sub-groups in flight: strategies/pipelined_swap.py
SWITCHES = ("enabled", "deepcompile")  # keys without which the rest of their section does nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmodelled:
    """A key that memory and time do not count."""

    path: str
    value: object
    effect: str
    may_add: bool  # whether it may need more than what is shown

    def to_dict(self) -> dict[str, object]:
        """The JSON document."""
        return {"key": self.path, "value": self.value, "effect": self.effect, "may_add": self.may_add}


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What decides the ledger."""

    stage: int
    precision: Precision
    accumulation: Precision | None
    knobs: Knobs
    optimizer: str  # the type, lower case where DeepSpeed lowers it; empty: the script's own
    torch_adam: bool
    fused: bool
    momentum: bool
    optimizer_on: str | None
    ratio: float
    pin_memory: bool
    swap_buffers: int
    pipelined: bool
    parameters_on: str | None
    parameter_buffers: int
    parameter_buffer_size: int
    max_in_cpu: int
    unmodelled: tuple[Unmodelled, ...]


def meaning(resolved: Resolved) -> Meaning:
    """The values in force, as DeepSpeed acts on them: what it ignores at a stage is ignored here."""
    stage = int(resolved.zero("stage"))
    precision = precision_of(resolved)
    on, parameters = (_device(resolved, name) for name in ("offload_optimizer", "offload_param"))
    offload = f"{ZERO}.offload_optimizer"
    both = bool(resolved[f"{offload}.pipeline_read"] and resolved[f"{offload}.pipeline_write"])
    nvme = on == "nvme" and stage == 3
    return Meaning(
        stage=stage,
        precision=precision,
        accumulation=TYPES.get(str(resolved["data_types.grad_accum_dtype"])),
        knobs=_knobs(resolved, parameters),
        optimizer=optimizer_type(resolved),
        torch_adam=bool(resolved.params.get("torch_adam")),
        fused=bool(resolved.params.get("fused")),
        momentum=bool(resolved.params.get("momentum")),
        optimizer_on=None if stage == 0 or on is None else "nvme" if nvme else "cpu",
        ratio=float(resolved[f"{offload}.ratio"]) if stage == 3 and on == "cpu" else 1.0,
        pin_memory=bool(resolved[f"{offload}.pin_memory"]),
        swap_buffers=int(resolved[f"{offload}.buffer_count"]),
        pipelined=nvme and both,
        parameters_on=parameters if stage == 3 else None,
        parameter_buffers=int(resolved[f"{ZERO}.offload_param.buffer_count"]),
        parameter_buffer_size=int(resolved[f"{ZERO}.offload_param.buffer_size"]),
        max_in_cpu=int(resolved[f"{ZERO}.offload_param.max_in_cpu"]),
        unmodelled=tuple(_unmodelled(resolved, stage, precision)),
    )


def precision_of(resolved: Resolved) -> Precision:
    """fp16 comes first, as in the engine."""
    if resolved["fp16.enabled"]:
        return Precision.FP16
    return Precision.BF16 if resolved["bf16.enabled"] else Precision.FP32


def optimizer_type(resolved: Resolved) -> str:
    """optimizer.type; DeepSpeed's own names in any case, torch's as torch has them."""
    name = str(resolved["optimizer.type"] or "")
    return name.lower() if name.lower() in LOWERED else name


def _device(resolved: Resolved, name: str) -> str | None:
    device = str(resolved[f"{ZERO}.{name}.device"])
    return None if device == "none" else device


def _knobs(resolved: Resolved, parameters: str | None) -> Knobs:
    """Sizes; parameters on NVMe without prefetching keep the window of the chosen sizes, an upper bound there."""
    prefetch = int(resolved.zero("stage3_prefetch_bucket_size"))
    swapped = parameters == "nvme" and prefetch == 0
    hpz = int(resolved.zero("zero_hpz_partition_size"))
    return Knobs(
        reduce_bucket=int(resolved.zero("reduce_bucket_size")),
        overlap_comm=bool(resolved.zero("overlap_comm")),
        reduce_scatter=bool(resolved.zero("reduce_scatter")),
        prefetch=None if swapped else prefetch,
        persistence=int(resolved.zero("stage3_param_persistence_threshold")),
        persisted=int(resolved.zero("stage3_model_persistence_threshold")),
        live=int(resolved.zero("stage3_max_live_parameters")),
        reuse=int(resolved.zero("stage3_max_reuse_distance")),
        sub_group=max(1, int(resolved.zero("sub_group_size"))),
        secondary_ranks=hpz if hpz > 1 else 1,
    )


def _unmodelled(resolved: Resolved, stage: int, precision: Precision) -> Iterator[Unmodelled]:
    """Keys that act, and that neither memory nor time count."""
    for path, key in keys().items():
        value = resolved[path]
        acts = stage in key.stages and value not in (key.default, None) and _switched_on(resolved, path)
        if path == "communication_data_type":
            acts = acts and value != precision.value
        if path == "tensor_parallel.autotp_size" or path == "sequence_parallel_size":
            acts = acts and int(value or 0) > 1
        if acts and key.cost in ("unknown", "spares"):
            yield Unmodelled(path=path, value=value, effect=key.effect, may_add=key.cost == "unknown")
    for path, section in sections().items():
        if section.unknown == "free" and section.cost == "unknown" and path in resolved.written:
            yield Unmodelled(path=path, value="...", effect=section.effect, may_add=True)
    name = optimizer_type(resolved)
    if name in (*LOWERED, *TORCH) and name not in COUNTED:
        effect = f"the memory and time of {resolved['optimizer.type']} are not known: AdamW's are shown in their place"
        yield Unmodelled(path="optimizer.type", value=resolved["optimizer.type"], effect=effect, may_add=True)
    if f"{ZERO}.zenflow" in resolved.written:
        section = sections()[f"{ZERO}.zenflow"]
        yield Unmodelled(path=section.path, value="...", effect=section.effect, may_add=True)


def _switched_on(resolved: Resolved, path: str) -> bool:
    """Whether the section's own switch is on, where it has one."""
    parent = path.rpartition(".")[0]
    switches = [f"{parent}.{name}" for name in SWITCHES if parent and f"{parent}.{name}" in keys()]
    return all(resolved[switch] for switch in switches)
