"""A DeepSpeed configuration, judged: its values in force, the stack they stand for, folded on the user's machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..planner.candidate import Candidate
from ..planner.compatibility import Refusal
from ..planner.dsconfig.changing import changed
from ..planner.dsconfig.meaning import Meaning, meaning
from ..planner.dsconfig.resolving import Asked, Resolved, resolve
from ..planner.dsconfig.rules import Judge
from ..planner.errors import InputError
from ..planner.hardware import Offer
from ..planner.model import Model
from ..planner.request import Request
from ..planner.transform import Stack
from ..planner.workload import Method
from ..strategies.given import given_stack
from .configuring import best_of
from .searching import choices_of


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One configuration on the machines."""

    document: Mapping[str, Any]
    resolved: Resolved
    meaning: Meaning
    candidate: Candidate
    refusal: Refusal | None  # of the compatibility table: what was not tried, or does not run


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything of a check but the configuration: model, request, machines, and what the training script does."""

    model: Model
    wanted: Request
    machines: Sequence[Offer]
    method: Method
    layers: int
    on_host: bool
    micro_batch: int | None

    @property
    def asked(self) -> Asked:
        """What the script says besides the file."""
        wanted = self.wanted
        precision = choices_of(wanted, self.model).required("precision")
        return Asked(
            gpus=wanted.gpu_count or 0,
            hidden=self.model.hidden,
            sequences=wanted.sequences,
            micro_batch=self.micro_batch,
            global_batch=wanted.global_batch,
            precision=None if precision is None else str(precision),
        )

    def judge(self, document: Mapping[str, Any]) -> Judged:
        """One configuration.

        Raises:
            InputError: it contradicts the command, or its batch has no end.
        """
        resolved = resolve(document, self.asked)
        told = meaning(resolved)
        choices = replace(choices_of(self.wanted, self.model), methods=(self.method,))
        stack, refusal = given_stack(told, choices, self.model, self.method, layers=self.layers, on_host=self.on_host)
        candidate = self.on(stack, told.stage, resolved.batch.total, resolved.batch.micro)
        return Judged(document=document, resolved=resolved, meaning=told, candidate=candidate, refusal=refusal)

    def on(self, stack: Stack, stage: int, batch: int, micro_batch: int) -> Candidate:
        """A stack on the cheapest of the machines."""
        wanted = replace(self.wanted, global_batch=batch)
        wanted.check(self.model)
        return best_of(self.machines, stack, self.model, wanted, self.method, stage, micro_batch=micro_batch)

    def again(self, document: Mapping[str, Any]) -> Judge:
        """Judges one document after changes."""

        def judge(changes: Mapping[str, Any]) -> Candidate | None:
            other = self.after(document, changes)
            return None if other is None else other.candidate

        return judge

    def after(self, document: Mapping[str, Any], changes: Mapping[str, Any]) -> Judged | None:
        """The configuration after changes; None where it cannot be judged."""
        try:
            return self.judge(changed(document, changes))
        except InputError:
            return None
