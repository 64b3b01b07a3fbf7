"""A candidate's stack, one transform a row: what the ledger and the step are after each strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .candidate import Candidate, step_time
from .evaluate import evaluate
from .ledger import Device
from .transform import Stack


@dataclass(frozen=True, kw_only=True)
class StackRow:
    """One strategy of the stack: what the ledger and the step were after it."""

    strategy: str
    allocated_bytes: int
    host_bytes: int
    step_s: float
    deepspeed: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "strategy": self.strategy,
            "allocated_bytes": self.allocated_bytes,
            "host_bytes_per_node": self.host_bytes,
            "step_s": self.step_s,
            "deepspeed": self.deepspeed,
        }


def stack_rows(candidate: Candidate) -> tuple[StackRow, ...]:
    """The baseline and the ledger after each strategy, each with its step on the candidate's machine."""
    strategies, setting = candidate.stack.strategies, candidate.setting
    rows: list[StackRow] = []
    before: dict[str, Any] = {}
    for count in range(len(strategies) + 1):
        ledger = evaluate(Stack(strategies[:count]), setting)
        rows.append(
            StackRow(
                strategy=strategies[count - 1].name if count else "baseline: bf16, AdamW, every rank holds everything",
                allocated_bytes=ledger.peak(Device.GPU),
                host_bytes=ledger.peak(Device.HOST) * setting.ranks_per_node,
                step_s=step_time(ledger, setting, candidate.offer.node).step_s,
                deepspeed=_changed(before, ledger.deepspeed),
            )
        )
        before = ledger.deepspeed
    return tuple(rows)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Keys that are new or different, sections taken apart."""
    found: dict[str, Any] = {}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, dict):
            inner = _changed(old if isinstance(old, dict) else {}, value)
            found |= {f"{key}.{name}": x for name, x in inner.items()}
        elif value != old:
            found[key] = value
    return found
