"""Plans of every family of stacks, as documents: what launch targets are tested with."""

from __future__ import annotations

from functools import cache
from typing import Any

from trainplan.planner.candidate import assess
from trainplan.planner.emit.job import Job, job_of
from trainplan.planner.emit.start import Emitted, Start
from trainplan.planner.emit.targets import TARGETS, emit_for
from trainplan.planner.errors import InputError
from trainplan.planner.family import Family
from trainplan.planner.plan import core_document
from trainplan.strategies.space import Choices, families

from .tiny import llama, machines, setting

REQUIRED = (
    (), ("chunked-loss",), ("liger", "torch-compile"), ("eager-attention",), ("padded-batches",), ("adamw-8bit",),
    ("paged-adamw-8bit",), ("lion",), ("adafactor",), ("sgd",), ("fp16",), ("fp32",), ("no-zero-init", "zero-3"),
    ("grad-accum-fp32",), ("checkpointing-offload",),
)  # fmt: skip
MODEL = llama(hidden=2048, intermediate=5504, heads=16, vocab=32000)
START = Start(folder="plans/x", data="some/data", model="some/model")


@cache
def plans() -> dict[str, dict[str, Any]]:
    """One document for each family under each requirement, on one node or two, with no, some or all layers."""
    found: dict[str, dict[str, Any]] = {}
    for required in REQUIRED:
        every = 5 if required else 2  # of the many that are alike
        for family in families(Choices(require=required), MODEL)[::every]:
            nodes = 1 + len(found) % 2
            layers = 0 if family.checkpointing is None else (1, 4)[len(found) // 2 % 2]
            document = plan_of(family, nodes=nodes, layers=layers)
            name = (
                f"{'+'.join(required) or 'plain'}-{family.method.value}-{family.name}-{family.groups}-{nodes}x{layers}"
            )
            found[name] = document
    return found


def plan_of(family: Family, *, nodes: int, layers: int) -> dict[str, Any]:
    """A family at so many checkpointed layers, assessed on machines of one's own."""
    at = setting(MODEL, ranks=4, nodes=nodes, micro_batch=2, micro_steps=3, seq_len=2048)
    stack = family.at(layers, max(1, family.groups // 2))
    offer = machines("a100-80", gpus=4, host_gib=512, nvme_gib=4096)
    return core_document(assess(offer, stack, at, method=family.method, zero_stage=family.zero_stage))


def emitted(document: dict[str, Any], start: Start = START) -> tuple[Job, dict[str, Emitted]]:
    """Every target that can run a plan, by name."""
    job, found = job_of(document), {}
    for name in TARGETS:
        try:
            found[name] = emit_for(name, job, start)
        except InputError:
            if not job.checkpointing.on_host:  # the one thing that some trainers refuse
                raise
    return job, found
