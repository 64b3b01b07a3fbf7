"""What a trace is of, and what the ledger says about it: one rank, no ZeRO, nothing offloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..planner.computation import Adapters, AttentionImplementation, Computation, default_targets, effective_attention
from ..planner.errors import InputError
from ..planner.ledger import Ledger
from ..planner.model import Model
from ..planner.states import baseline
from ..planner.trace import Subject, Trace
from ..planner.trace.compare import Row, compared
from ..planner.trace.text import trace_document
from ..planner.transform import Setting, Stack, fold
from ..planner.workload import Method, Precision, Workload
from .loss import DEFAULT_CHUNK_TOKENS
from .space import method_strategy

CHUNKS: Mapping[str, int] = {"full": 0, "chunked": DEFAULT_CHUNK_TOKENS}


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A trace, what it is of, and the ledger's prediction beside it."""

    subject: Subject
    trace: Trace

    @property
    def rows(self) -> tuple[Row, ...]:
        """Each amount, traced and predicted."""
        return compared(self.trace, self.subject, *expected(self.subject))

    def to_dict(self, note: str = "") -> dict[str, Any]:
        """The JSON document; ``note`` says what the model's name was taken to mean."""
        return trace_document(self.trace, self.rows, self.subject, note)


def subject_of(
    model: Model, *, seq_len: int, micro_batch: int, micro_steps: int, method: str, rank: int, targets: tuple[str, ...],
    checkpointed: int, attention: str, loss: str, precision: str,
) -> Subject:  # fmt: skip
    """A subject from choices as they are typed.

    Raises:
        InputError: no such choice, or adapters on nothing.
    """
    chosen = _known(method, Method, "--method")
    adapters = None if chosen is Method.FULL else Adapters(rank=rank, targets=targets or default_targets(model))
    if adapters is not None and not any(adapters.adapted(block) for block, _ in model.distinct_blocks):
        raise InputError(f"--lora-targets: no nn.Linear of {model.name} has the name {', '.join(adapters.targets)}")
    if loss not in CHUNKS:
        raise InputError(f"--loss: no such choice, got {loss!r:.40}; allowed are {', '.join(CHUNKS)}")
    computation = Computation(
        precision=_known(precision, Precision, "--precision"),
        adapters=adapters,
        quantized=chosen is Method.QLORA,
        attention=effective_attention(model, _known(attention, AttentionImplementation, "--attention")),
        checkpointed_layers=checkpointed,
        loss_chunk=CHUNKS[loss],
    )
    return Subject(
        model=model, seq_len=seq_len, micro_batch=micro_batch, computation=computation, micro_steps=micro_steps
    )


def _known(value: str, kind: Any, where: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        allowed = ", ".join(member.value for member in kind)
        raise InputError(f"{where}: no such choice, got {value!r:.40}; allowed are {allowed}") from None


def expected(subject: Subject) -> tuple[Ledger, Setting]:
    """The method's tensors in the subject's computation, and one rank to hold them."""
    batch = subject.micro_batch * subject.micro_steps
    workload = Workload(
        model=subject.model, tokens=batch * subject.seq_len, seq_len=subject.seq_len, global_batch=batch
    )
    setting = Setting(workload=workload, nodes=1, ranks_per_node=1, micro_batch=subject.micro_batch)
    adapters, quantized = subject.computation.adapters, subject.computation.quantized
    method = Method.FULL if adapters is None else Method.QLORA if quantized else Method.LORA
    start = replace(baseline(setting), computation=subject.computation)
    folded = fold(start, Stack.of(*method_strategy(method, adapters or Adapters())), setting)
    return replace(folded, computation=subject.computation), setting
