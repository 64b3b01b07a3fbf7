"""The job of a plan: every value that a launch target needs, read from plan.json once its parts were found to agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, listed
from ..planfile import AGAIN
from ..workload import Method, Precision
from .agreement import ALL_LINEAR, is_number, problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """The first ``layers`` of the model's ``of`` recompute; what they keep lies on the GPU or in host RAM."""

    layers: int
    of: int
    on_host: bool

    @property
    def partial(self) -> bool:
        """Some layers, not all."""
        return 0 < self.layers < self.of


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What peft.LoraConfig is given; no modules: every linear layer."""

    rank: int
    alpha: float
    dropout: float
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What transformers.BitsAndBytesConfig is given."""

    quant_type: str
    double_quant: bool
    compute: Precision
    storage: Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """The optimizer and its hyperparameters; None: it has no such one. ``in_script``: ds_config has none."""

    name: str
    in_script: bool
    learning_rate: float
    betas: tuple[float, float] | None
    eps: float | None
    weight_decay: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What was priced, and what of it the job fills."""

    cloud: str
    instance: str
    gpu: str
    region: str
    tier: str
    price_source: str
    nodes: int
    gpus_per_node: int
    hours_upper: float | None
    host_bytes: int  # of a node, upper bound
    checkpoint_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The same plan with every layer recomputed and checkpoints on the GPU."""

    device_bytes: int  # upper bound
    capacity_bytes: int
    step_s: float

    @property
    def fits(self) -> bool:
        """On the plan's GPU."""
        return self.device_bytes <= self.capacity_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan that can be started. Sizes in tokens, sequences, layers and bytes."""

    name: str
    model: str | None  # hub id
    method: Method
    precision: Precision
    attention: str
    packed: bool
    seq_len: int
    global_batch: int
    steps: int
    save_every: int
    micro_batch: int
    accumulation: int
    zero_stage: int
    zero_init: bool
    checkpointing: Checkpointing
    loss_chunk_tokens: int
    adapters: Adapters | None
    quantization: Quantization | None
    optimizer: Optimizer
    liger: bool
    compile: bool
    machines: Machines
    device_bytes: int  # of a GPU, upper bound
    step_s: float
    ds_config: Mapping[str, Any]
    versions: Mapping[str, str]
    whole: Whole | None = None

    @property
    def gpus(self) -> int:
        """Ranks."""
        return self.machines.nodes * self.machines.gpus_per_node

    @property
    def several_nodes(self) -> bool:
        """Whether ranks must find each other over a network."""
        return self.machines.nodes > 1

    def offload(self, what: str) -> Mapping[str, Any]:
        """DeepSpeed's block ``offload_optimizer`` or ``offload_param``; empty where there is none."""
        found: Mapping[str, Any] = self.ds_config.get("zero_optimization", {}).get(what, {})
        return found

    @property
    def pins_memory(self) -> bool:
        """Whether host RAM is page-locked."""
        return any(self.offload(what).get("pin_memory") for what in ("offload_optimizer", "offload_param"))

    @property
    def nvme_path(self) -> str | None:
        """Where NVMe must be mounted on every node."""
        blocks = (self.offload("offload_optimizer"), self.offload("offload_param"))
        return next((str(b["nvme_path"]) for b in blocks if b.get("device") == "nvme"), None)


def job_of(document: Mapping[str, Any], *, where: str = "plan", whole: Whole | None = None) -> Job:
    """The job of a plan.json document that ``read_plan`` returned.

    Args:
        document: the plan.
        where: its file, for messages.
        whole: what the plan becomes where every layer recomputes, if known.

    Raises:
        InputError: the plan says nothing of training, or its parts contradict each other; all of them in one line.
    """
    if document.get("training") is None or document.get("ds_config") is None:
        raise InputError(f"{where}: no section training or ds_config; only a plan that has both is started; {AGAIN}")
    found = list(problems(document))
    if found:
        raise InputError(f"{where}: {listed(found)}; the parts of a plan must agree; {AGAIN}")
    return _job(document, whole)


def _job(document: Mapping[str, Any], whole: Whole | None) -> Job:
    d, t = document["decision"], document["training"]
    c = t["checkpointing"]
    return Job(
        name=document["model"]["name"],
        model=t.get("model"),
        method=Method(d["method"]),
        precision=Precision(t["precision"]),
        attention=t["attn_implementation"],
        packed=t["packed"],
        seq_len=t["seq_len"],
        global_batch=t["global_batch"],
        steps=t["steps"],
        save_every=t["save_every_steps"],
        micro_batch=d["micro_batch"],
        accumulation=d["gradient_accumulation_steps"],
        zero_stage=d["zero_stage"],
        zero_init=t["zero_init"],
        checkpointing=Checkpointing(layers=c["layers"], of=c["of"], on_host=c["on_host"]),
        loss_chunk_tokens=t["loss_chunk_tokens"],
        adapters=_adapters(document.get("adapters")),
        quantization=_quantization(t.get("quantization")),
        optimizer=_optimizer(t["optimizer"], document["ds_config"]),
        liger=t["liger"],
        compile=t["compile"],
        machines=_machines(document),
        device_bytes=document["memory"]["gpu"]["upper_bound_bytes"],
        step_s=document["time"]["step_s"],
        ds_config=document["ds_config"],
        versions={str(name): str(version) for name, version in t["versions"].items()},
        whole=whole,
    )


def _adapters(row: Mapping[str, Any] | None) -> Adapters | None:
    if row is None:
        return None
    named = row["target_modules"]
    return Adapters(
        rank=row["rank"],
        alpha=row.get("alpha") or row["rank"],
        dropout=row["dropout"],
        modules=() if named == ALL_LINEAR else tuple(named),
    )


def _quantization(row: Mapping[str, Any] | None) -> Quantization | None:
    if row is None:
        return None
    return Quantization(
        quant_type=row["quant_type"],
        double_quant=row["double_quant"],
        compute=Precision(row["compute_dtype"]),
        storage=Precision(row["storage_dtype"]),
    )


def _optimizer(row: Mapping[str, Any], config: Mapping[str, Any]) -> Optimizer:
    in_script = row["from"] == "script"
    params = row if in_script else config["optimizer"]["params"]
    return Optimizer(
        name=row["name"],
        in_script=in_script,
        learning_rate=params["lr"],
        betas=(params["betas"][0], params["betas"][1]) if "betas" in params else None,
        eps=params.get("eps"),
        weight_decay=params.get("weight_decay"),
    )


def _machines(document: Mapping[str, Any]) -> Machines:
    d = document["decision"]
    cloud, _, instance = d["offer"].partition("/")
    upper = document["cost"].get("hours_upper")
    return Machines(
        cloud=cloud,
        instance=instance,
        gpu=d["gpu"],
        region=d["region"],
        tier=d["tier"],
        price_source=str(d.get("price_source", "")),
        nodes=d["nodes"],
        gpus_per_node=d["gpus_per_node"],
        hours_upper=float(upper) if is_number(upper) else None,
        host_bytes=document["memory"]["host"]["upper_bound_bytes"],
        checkpoint_bytes=document["cost"]["run"]["checkpoint_bytes"],
    )
