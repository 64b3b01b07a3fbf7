"""A plan's decision with other ranks, layers and tokens: the candidate that the machine at hand can run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..planner.candidate import Candidate
from ..planner.errors import InputError, TooSmall
from ..planner.ledger import Device, Item
from ..planner.model import Model
from ..planner.planfile import model_of, request_of
from ..planner.request import DEFAULT_TOKENS, Request
from ..planner.states import FP32, largest_module
from ..planner.units import GIB, gib
from ..planner.verify.machine import Machine
from ..planner.verify.shrink import Shrunk, fewest_layers, fitted, with_layers
from ..planner.workload import Method
from .rebuilding import candidate_of

PRICE_USD = 1.0  # of machines of one's own: nothing that is compared depends on it
NETWORK_GBPS = 100.0  # likewise
MOST_MICRO_STEPS = 2  # a third one is like the second
CPU_TOKENS = 16  # of a sequence: states do not depend on it, and attention on a CPU is slow
CPU_ELEMENTS = 100_000_000  # of a model on a CPU: 298 million took 100 s a step on two busy cores, 2026-11-26
CPU_PROCESS_BYTES = GIB  # of a process without CUDA: 0.6 GB resident, measured 2026-11-26, torch 2.13.0
FREE_SHARE = 0.8  # of free memory that is used at most: on a CPU the page cache holds the weights' file besides


def rebuilt(
    document: Mapping[str, Any],
    model: Model,
    *,
    ranks: int,
    per_node: int,
    micro_steps: int,
    seq_len: int | None = None,
    gpu: str | None = None,
) -> Candidate:
    """The plan's stack and micro-batch, assessed for other ranks; no price list or other file of the plan is read.

    Args:
        document: from ``read_plan``.
        model: that is run; of the plan's checkpointed layers as large a share, and at least one.
        ranks: GPUs, or processes that stand for them.
        per_node: of each node.
        micro_steps: of an optimizer step.
        seq_len: tokens of a sequence; the plan's by default.
        gpu: the catalog's name of the GPU; the plan's by default.
    """
    whole, chosen = model_of(document), document["decision"]
    asked = request_of(document).suited(whole)
    layers, tokens = int(chosen["checkpointed_layers"]), seq_len or asked.seq_len
    kept = min(model.layers, max(1, round(layers * model.layers / whole.layers))) if layers else 0
    batch = int(chosen["micro_batch"]) * ranks * micro_steps
    wanted = Request(
        gpus=(gpu or str(chosen["gpu"]),),
        gpu_count=ranks,
        max_gpus=ranks,
        gpus_per_node=per_node,
        price_usd_per_gpu_hour=PRICE_USD,
        internode_gbps=NETWORK_GBPS,
        host_memory_gib=asked.host_memory_gib,
        tokens=max(DEFAULT_TOKENS, batch * tokens),
        seq_len=tokens,
        global_batch=batch,
        methods=(Method(chosen["method"]),),
        require=asked.require,
        forbid=asked.forbid,
        lora_rank=asked.lora_rank,
        lora_targets=asked.lora_targets,
        nvme_path=asked.nvme_path,
        given=frozenset({"seq_len"}),
    )
    decision = {**chosen, "checkpointed_layers": kept, "offer": ""}
    return candidate_of({**document, "decision": decision}, model=model, wanted=wanted)


def as_planned(document: Mapping[str, Any]) -> Candidate:
    """The plan's own ranks, batch and model."""
    chosen = document["decision"]
    return rebuilt(
        document,
        model_of(document),
        ranks=int(chosen["gpus"]),
        per_node=int(chosen["gpus_per_node"]),
        micro_steps=int(chosen["gradient_accumulation_steps"]),
    )


def narrowed(document: Mapping[str, Any], model: Model, machine: Machine, ranks: int) -> Candidate:
    """What this machine runs: fewer ranks on one node, at most two micro-steps, on a CPU short sequences."""
    planned = request_of(document).suited(model).seq_len
    return rebuilt(
        document,
        model,
        ranks=ranks,
        per_node=ranks,
        micro_steps=min(MOST_MICRO_STEPS, int(document["decision"]["gradient_accumulation_steps"])),
        seq_len=planned if machine.cards else min(CPU_TOKENS, planned),
        gpu=machine.gpu,
    )


def shrunk(document: Mapping[str, Any], model: Model, machine: Machine, ranks: int, layers: int | None) -> Shrunk:
    """As much of the model as this machine holds.

    Raises:
        InputError: it has not so many layers.
        TooSmall: not even the least of it fits.
    """
    if layers is not None and not 1 <= layers <= model.layers:
        raise InputError(f"--layers: got {layers}; the model has {model.layers}; give a number from 1 to that")

    def fits(tried: Model) -> bool:
        heavy = not machine.cards and layers is None and tried.parameter_count > CPU_ELEMENTS
        return not heavy and _fits(narrowed(document, tried, machine, ranks), machine)

    found = fitted(model, fits, depth_only=bool(machine.cards), layers=layers)
    if found is None:
        raise TooSmall(_too_small(document, model, machine, ranks, layers))
    return found


def _fits(c: Candidate, machine: Machine) -> bool:
    return all(needed <= FREE_SHARE * free for _, needed, free in needs(c, machine))


def needs(c: Candidate, machine: Machine) -> list[tuple[str, int, int]]:
    """What a candidate needs of this machine and what is free, in bytes: on a CPU its RAM is the GPU's memory too."""
    if machine.cards:
        host = c.ledger.peak(Device.HOST, upper=True)
        on_gpu = ("GPU memory", c.gpu.upper_bound_bytes, machine.free_gpu_bytes)
        return [on_gpu, ("RAM", host * c.gpus, machine.free_ram_bytes)]
    product = FP32 * largest_module(c.setting.model)  # of a matrix in fp32: see planner/verify/follow.py
    states = c.ledger.peak(Device.GPU) + c.ledger.without(Item.PROCESS).peak(Device.HOST)
    return [("RAM", (states + product + CPU_PROCESS_BYTES) * c.gpus, machine.free_ram_bytes)]


def _too_small(document: Mapping[str, Any], model: Model, machine: Machine, ranks: int, layers: int | None) -> str:
    """How much is missing, for the least that would be run with the model's own widths."""
    count = layers or fewest_layers(model)
    least = with_layers(model, count)
    if least is None:
        return f"verify: {model.name} cannot be cut to {count} layers; verify another model of its family with --model"
    short = [
        f"{gib(needed)} of {name} with {gib(FREE_SHARE * free)} to use"
        for name, needed, free in needs(narrowed(document, least, machine, ranks), machine)
        if needed > FREE_SHARE * free
    ]
    what = "; ".join(short) or f"more than the {CPU_ELEMENTS:,} parameters that a CPU is given"
    return (
        f"verify: this machine is too small: {count} of {model.layers} layers on {ranks} ranks need {what} "
        f"({FREE_SHARE:.0%} of what is free); give fewer --processes or --layers, or a smaller model of the same "
        "family with --model"
    )
