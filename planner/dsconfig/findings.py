"""What is wrong, harmful, wasteful or worth knowing about a configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

LONGEST_SHOWN = 60  # characters of a value that a message repeats


class Severity(IntEnum):
    """How bad it is, the worst first."""

    ERROR = 0  # will not run
    HARMFUL = 1  # runs, and does harm: wrong weights, lost checkpoints, many times slower
    WASTEFUL = 2  # runs, and costs more than it must
    NOTE = 3

    @property
    def word(self) -> str:
        """What people read."""
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a key costs, as the difference of two folded ledgers and steps: with it less without it."""

    gpu_bytes: int  # of one GPU, at the peak
    gpu_phase_bytes: int  # of one GPU, in the phase of training where it is most
    host_bytes: int  # of one node, at the peak
    nvme_bytes: int  # of one node
    step_s: float
    usd: float

    def to_dict(self) -> dict[str, float]:
        """The JSON document."""
        return {
            "gpu_bytes": self.gpu_bytes,
            "gpu_bytes_in_its_phase": self.gpu_phase_bytes,
            "host_bytes_per_node": self.host_bytes,
            "nvme_bytes_per_node": self.nvme_bytes,
            "step_s": self.step_s,
            "usd": self.usd,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding: where, what was given, why, what to do."""

    severity: Severity
    rule: str
    path: str
    given: str
    why: str
    instead: str
    source: str
    changes: tuple[tuple[str, Any], ...] = ()  # edits that mend it
    cost: Cost | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "severity": self.severity.word,
            "rule": self.rule,
            "key": self.path,
            "given": self.given,
            "why": self.why,
            "instead": self.instead,
            "source": self.source,
            "costs": self.cost.to_dict() if self.cost else None,
        }


def shown(value: Any) -> str:
    """A value as JSON has it, cut where it is long.

    >>> shown(True), shown("auto"), shown(500_000_000)
    ('true', '"auto"', '500,000,000')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
