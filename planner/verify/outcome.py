"""What a verification found: what ran, every row, what does not agree, and what was not compared."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..candidate import Candidate
from ..documents import SCHEMA_VERSION, decision
from ..ledger import BACKWARDS, Device, Phase
from ..memory import Band
from ..time import step_seconds
from .compare import Report, Row, bounded, engine_rows, off_rows, state_rows
from .machine import Machine
from .shrink import Shrunk

LINE_OFF = 6  # exit code: a line, or the plan file, does not hold
PHASES: Mapping[str, tuple[Phase, ...]] = {
    "start": (Phase.START,),
    "forward": (Phase.FORWARD, Phase.LOSS),
    "backward": (Phase.LOSS, *BACKWARDS),
    "step": (Phase.STEP,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What the processes said of themselves."""

    engine: str  # DeepSpeed's class around the optimizer
    optimizer: str
    trainable: int
    versions: Mapping[str, str]
    step_s: tuple[float, ...]  # of the slowest rank

    @classmethod
    def of(cls, reports: Sequence[Mapping[str, Any]]) -> Ran:
        """From the ranks' reports."""
        first = reports[0]
        slowest = zip(*(report["step_s"] for report in reports), strict=True)
        return cls(
            engine=first["optimizer"],
            optimizer=first["base_optimizer"],
            trainable=first["trainable"],
            versions=first["versions"],
            step_s=tuple(max(seconds) for seconds in slowest),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A plan, what of it ran here, and whether it held."""

    planned: Candidate
    candidate: Candidate  # that ran
    machine: Machine
    shrunk: Shrunk
    ran: Ran
    rows: tuple[Row, ...]
    disagreements: tuple[str, ...]  # of the plan file with its own decision, as it is assessed today
    notes: tuple[str, ...]  # what was not compared, and why

    @property
    def passed(self) -> bool:
        """Whether every line holds and the file agrees with itself."""
        return not self.disagreements and all(row.holds for row in self.rows)

    @property
    def off(self) -> tuple[str, ...]:
        """Names of the lines that do not hold."""
        return tuple(dict.fromkeys(row.line for row in off_rows(self.rows)))

    @property
    def step_s(self) -> float:
        """Median of the steps after the first, which compiles and allocates."""
        return statistics.median(self.ran.step_s[1:] or self.ran.step_s)

    @property
    def promised_s(self) -> tuple[float, float, float] | None:
        """The step's band; None where nothing is promised: on a CPU, or a GPU that the catalog does not have."""
        if self.machine.gpu is None:
            return None
        band = step_seconds(self.candidate.time)
        return band.low, self.candidate.time.step_s, band.upper

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        c, promised = self.candidate, self.promised_s
        return {
            "schema_version": SCHEMA_VERSION,
            "status": "passed" if self.passed else "failed",
            "model": self.planned.setting.model.name,
            "planned": decision(self.planned) | {"seq_len": self.planned.setting.seq_len},
            "ran": {
                "device": self.machine.device,
                "machine": self.machine.text,
                "processes": c.gpus,
                "layers": c.setting.model.layers,
                "vocabulary": c.setting.model.vocab,
                "hidden": c.setting.model.hidden,
                "model": self.shrunk.whole,
                "seq_len": c.setting.seq_len,
                "micro_batch": c.setting.micro_batch,
                "gradient_accumulation_steps": c.setting.gradient_accumulation_steps,
                "checkpointed_layers": c.layers,
                "precision": c.ledger.computation.precision.value,
                "strategies": list(c.stack.names),
                "engine": self.ran.engine,
                "optimizer": self.ran.optimizer,
                "versions": dict(self.ran.versions),
            },
            "off": list(self.off),
            "disagreements": list(self.disagreements),
            "rows": [row_document(row) for row in self.rows],
            "step_s": {
                "each": list(self.ran.step_s),
                "measured": self.step_s,
                "planned": promised and {"low": promised[0], "point": promised[1], "upper": promised[2]},
            },
            "not_compared": list(self.notes),
        }


def row_document(row: Row) -> dict[str, Any]:
    """One row."""
    return {
        "line": row.line,
        "section": row.section,
        "moment": row.moment,
        "planned_bytes": row.planned_bytes,
        "measured_bytes": row.measured_bytes,
        "least_bytes": row.least_bytes,
        "most_bytes": row.most_bytes,
        "holds": row.holds,
    }


def measured_rows(c: Candidate, reports: Sequence[Mapping[str, Any]], steps: int, machine: Machine) -> tuple[Row, ...]:
    """Everything that these processes can show."""
    report = Report.of(reports)
    if not machine.cards:
        return engine_rows(c, report, steps)
    return (*state_rows(c, report, steps), *phase_rows(c, reports), *memory_rows(c, reports))


def phase_rows(c: Candidate, reports: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """torch.cuda.max_memory_allocated of each part of a step, beside the fullest of its phases."""
    points, uppers = (c.ledger.by_phase(Device.GPU, upper=upper) for upper in (False, True))
    for name, phases in PHASES.items():
        fullest = max(phases, key=lambda phase: points[phase])
        yield bounded(
            f"allocated, {name}", "A, W, O, G", name, points[fullest],
            max(report["phases"].get(name, {}).get("allocated", 0) for report in reports),
            least=c.ledger.lowest(Device.GPU, fullest), most=max(uppers[phase] for phase in phases),
        )  # fmt: skip


def memory_rows(c: Candidate, reports: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """The three memories at their peaks, of the fullest GPU, less what other processes used before."""
    bands: Mapping[str, Band] = {"allocated": c.gpu.allocated, "reserved": c.gpu.reserved, "device": c.gpu.device}
    for kind, band in bands.items():
        found = max(_peak(report, kind) for report in reports)
        yield bounded(f"{kind} memory", "F1, F2", "peak", band.point, found, least=band.low, most=band.upper)


def _peak(report: Mapping[str, Any], kind: str) -> int:
    most = max(phase.get(kind, 0) for phase in report["phases"].values())
    return int(most - (report["moments"].get("before_bytes") or 0 if kind == "device" else 0))
