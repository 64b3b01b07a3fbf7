"""An estimate: how much, how long and what it costs, for one configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..planner.calibrate.used import profile_warnings
from ..planner.candidate import Candidate, Constraint, constraints
from ..planner.documents import cost_document, decision, memory_document, time_document
from ..planner.emit.deepspeed import ds_config
from ..planner.errors import InputError
from ..planner.model import Model
from ..planner.parallel import WHOLE, Split
from ..planner.plan import warnings_for
from ..planner.request import Request
from ..planner.stack_rows import StackRow, stack_rows
from ..planner.workload import Method
from .asking import as_model, request
from .configuring import assessed, checkpointed, offload_groups, where_kept


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One fixed configuration: memory, time, cost."""

    request: Request
    candidate: Candidate

    @cached_property
    def rows(self) -> tuple[StackRow, ...]:
        """The ledger after each strategy."""
        return stack_rows(self.candidate)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """All constraints, held or not."""
        r = self.request
        return constraints(self.candidate, budget_usd=r.budget_usd, deadline_s=r.deadline_s, max_gpus=r.max_gpus)

    @property
    def ds_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration.

        Raises:
            InputError: the model is cut, which takes more than a configuration.
        """
        c = self.candidate
        if c.setting.split is not WHOLE:
            raise InputError(f"ds_config: {c.stack.names[-1]} is planned, not emitted; leave model parallelism out")
        return ds_config(c.ledger, c.setting)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        c = self.candidate
        return {
            "schema_version": 1,
            "status": "estimated",
            "configuration": decision(c),
            "memory": memory_document(c),
            "time": time_document(c),
            "cost": cost_document(c),
            "constraints": [x.text() for x in self.constraints],
            "warnings": [*warnings_for(c), *profile_warnings(self.request, c.offer.node.gpu)],
            "ds_config": self.ds_config if c.setting.split is WHOLE else None,
        }


def estimate(
    model: str | Model,
    *,
    gpus: str = "",
    zero: int = 3,
    micro_batch: int = 1,
    method: str | Method = "full",
    checkpointing: str | int = "none",
    offload_optimizer: str | None = None,
    offload_ratio: float = 1.0,
    offload_parameters: str | None = None,
    tensor_parallel: int = 1,
    sequence_parallel: bool = False,
    pipeline_parallel: int = 1,
    pipeline_chunks: int = 1,
    context_parallel: int = 1,
    expert_parallel: int = 1,
    wanted: Request | None = None,
    **options: Any,
) -> Estimate:
    """How much, how long, what it costs, and whether it fits, for one configuration.

    Args:
        model: as in `plan`.
        gpus: a fixed count, "8xa100-80".
        zero: ZeRO stage.
        micro_batch: sequences per GPU and micro-step.
        method: full, lora or qlora.
        checkpointing: "none", "full", or how many layers; "-offload" appended keeps checkpoints on the host
            ("full-offload").
        offload_optimizer: "cpu" or "nvme".
        offload_ratio: share of the optimizer on the host.
        offload_parameters: "cpu" or "nvme".
        tensor_parallel: ranks that cut every layer.
        sequence_parallel: norms and residuals are cut over them too.
        pipeline_parallel: stages that cut the model by layers.
        pipeline_chunks: model chunks of one stage's rank (interleaved schedule).
        context_parallel: ranks that cut every sequence.
        expert_parallel: data-parallel ranks over which a mixture's experts are spread.
        wanted: a finished request, instead of gpus and options.
        options: as in `plan`.

    Raises:
        InputError: the configuration is illegal or contradicts itself.
    """
    loaded = as_model(model)
    chosen = (wanted or request(gpus=gpus, method=method, **options)).suited(loaded)
    chosen = replace(chosen, max_gpus=max(chosen.max_gpus, chosen.gpu_count or 0))  # they are named, not chosen
    if offload_optimizer is None and offload_ratio != 1.0:
        raise InputError(
            f"--offload-ratio: got {offload_ratio:g} and no --offload-optimizer; give --offload-optimizer cpu as well"
        )
    layers, on_host = checkpointed(checkpointing, loaded)
    facts = {
        "zero_stage": zero,
        "offload_optimizer": offload_optimizer,
        "offload_parameters": offload_parameters,
        "partial_share": bool(offload_optimizer) and offload_ratio < 1,
        "checkpointing": where_kept(layers, on_host),
    }
    split = Split(
        tensor=tensor_parallel,
        sequence=sequence_parallel,
        pipeline=pipeline_parallel,
        virtual=pipeline_chunks,
        context=context_parallel,
        expert=expert_parallel,
    )
    groups = offload_groups(offload_ratio)
    candidate = assessed(loaded, chosen, facts, layers=layers, groups=groups, micro_batch=micro_batch, split=split)
    return Estimate(request=chosen, candidate=candidate)
