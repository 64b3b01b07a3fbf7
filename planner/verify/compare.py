"""What engines held, line by line beside what the ledger says.

State lines are compared to the byte, and every tensor that an engine holds must belong to one. What is compared
otherwise is named here:

- gathered parameters (W5) are an upper bound; those that autograd keeps are seen once the backward pass is over;
- temporaries of the backward pass (O4, G4 on several ranks, G7) are alive with activations and are no line here;
- what start-up and the step need beside their states is seen as their peaks, within bounds that are stated;
- a CPU has no pinned memory: what pinning rounds up to is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..candidate import Candidate
from ..ledger import Device, Entry, Item, Phase, flat_partition
from ..retaining import retained_elements
from ..states import FP32, quantized_tensors
from .lines import Line, Moment, alive, ignored_items, last_micro_step, lines_of, moments

TOKEN_BYTES = 8  # int64
NORM_BYTES = 8  # of a tensor's norm, before they are summed
SCALAR_BYTES = 8  # step counters, loss scales, norms: single numbers are not followed
TOKENS = "int64"  # in the shape of a storage: tokens belong to no line


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the ranks of one engine held: by moment, bytes by category; what no line explains; peaks."""

    held: tuple[Mapping[str, Mapping[str, int]], ...]
    unexplained: tuple[Mapping[str, Any], ...]
    peaks: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, ranks: Sequence[Mapping[str, Any]]) -> Report:
        """From what the processes wrote."""
        return cls(
            held=tuple(rank["held_bytes"] for rank in ranks),
            unexplained=tuple(rank.get("unexplained", {}) for rank in ranks),
            peaks=tuple(rank.get("peak_bytes", {}) for rank in ranks),
        )

    def most(self, moment: str) -> Counter[str]:
        """Bytes by category, of the rank that holds most."""
        totals: Counter[str] = Counter()
        for held in self.held:
            for category, size in held[moment].items():
                totals[category] = max(totals[category], size)
        return totals

    def peak(self, moment: str) -> int:
        """The most that was alive at once, on the fullest rank."""
        return max(peaks[moment] for peaks in self.peaks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One amount, planned and measured, and whether the plan holds: within ``least`` and ``most``."""

    line: str
    section: str
    moment: str
    planned_bytes: int
    measured_bytes: int
    least_bytes: int
    most_bytes: int
    holds: bool

    @property
    def exact(self) -> bool:
        """Whether both are the same."""
        return self.planned_bytes == self.measured_bytes

    def text(self) -> str:
        """One line for people."""
        return f"{self.moment}: {self.line}: planned {self.planned_bytes:,}, held {self.measured_bytes:,}"


def bounded(
    line: str, section: str, moment: str, planned: int, measured: int, *, least: int | None = None, most: int = 0
) -> Row:
    """A row that holds between two bounds; without them only where both are the same."""
    low, high = planned if least is None else least, max(planned, most)
    return Row(
        line=line,
        section=section,
        moment=moment,
        planned_bytes=planned,
        measured_bytes=measured,
        least_bytes=low,
        most_bytes=high,
        holds=low <= measured <= high,
    )


def off_rows(rows: Iterable[Row]) -> list[Row]:
    """Those that do not hold."""
    return [row for row in rows if not row.holds]


def state_rows(c: Candidate, report: Report, steps: int, unseen: Sequence[Item] = ()) -> Iterator[Row]:
    """Every state line at every moment; lines that are neither planned nor held are left out.

    Args:
        c: whose ledger.
        report: what its engine held.
        steps: that it took.
        unseen: items that this device cannot show.
    """
    for moment in moments(c, steps):
        totals = report.most(moment.name)
        for line in lines_of(c):
            if not set(line.items) & {*moment.ignored, *unseen}:
                row = _state(line, moment, totals)
                if row.planned_bytes or row.measured_bytes:
                    yield row


def _state(line: Line, moment: Moment, totals: Mapping[str, int]) -> Row:
    label, section = named(line, moment.entries)
    return bounded(label, section, moment.name, line.planned(moment.entries), line.held(totals))


def named(line: Line, entries: Sequence[Entry]) -> tuple[str, str]:
    """Label and section of the item that is there, or of the first that may be."""
    there = [e.item for e in entries if e.item in line.items and e.device in line.devices]
    item = there[0] if there else line.items[0]
    where = f" on the {line.devices[0].value}" if len(line.devices) == 1 else ""
    return f"{item.label}{where}", item.section


def unexplained_rows(c: Candidate, report: Report, steps: int) -> Iterator[Row]:
    """Nothing else is alive but the tokens, rotary tables and single numbers; activations during forward aside."""
    for moment in moments(c, steps):
        if not moment.name.endswith("forward"):
            found = max(sum(size for size, _ in strangers(rank[moment.name])) for rank in report.unexplained)
            yield bounded("tensors of no line", "", moment.name, 0, found)


def strangers(storages: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Storages but the tokens'."""
    return [(size, shape) for size, shape in storages if TOKENS not in shape]


def gathered_row(c: Candidate, report: Report, steps: int) -> Row:
    """Stage 3 holds no more whole parameters than the line says; the other stages none."""
    moment = f"{last_micro_step(c, steps)}/forward"
    planned = sum(e.upper_bytes for e in alive(c, Phase.FORWARD) if e.item is Item.GATHERED)
    measured = report.most(moment)["gathered"]
    return bounded(Item.GATHERED.label, Item.GATHERED.section, moment, planned, measured, least=0)


def retained_rows(c: Candidate, report: Report, steps: int) -> Iterator[Row]:
    """Gathered NF4 weights that are still there after the backward pass, and before the loss is dropped.

    transformers lets the embeddings' output require a gradient where layers are recomputed; a script need not.
    """
    moment = f"{last_micro_step(c, steps)}/backward"
    planned = sum(e.bytes for e in alive(c, Phase.BACKWARD_END) if e.item is Item.RETAINED)
    measured = report.most(moment)["retained"]
    least = c.ledger.computation.precision.bytes * retained_elements(c.ledger, c.setting, skipping=True)
    if planned or measured:
        yield bounded(Item.RETAINED.label, Item.RETAINED.section, moment, planned, measured, least=min(least, planned))


def step_row(c: Candidate, report: Report, steps: int) -> Row:
    """The step's peak: resident states and the largest temporary, and at most one norm of 8 bytes for each tensor.

    Of a share the temporary lies between the line's bytes and its upper bound: the CPU's AdamW loops over tensors.
    """
    moment = f"{last_micro_step(c, steps)}/step"
    entries = [e for e in alive(c, Phase.STEP) if e.item is not Item.GRADIENT_FLATTENING]
    passing = [e for e in entries if e.item in (Item.STEP_TEMPORARIES, Item.PERSISTENT)]
    shown = [e for e in passing if e.item not in ignored_items(c)]
    # gathered again once the temporaries are gone: what they need more
    resident = sum(e.bytes for e in entries if e not in passing)
    resident += sum(e.bytes for e in shown if e.item is Item.PERSISTENT and e.phases == (Phase.STEP,))
    above = report.peak(moment) - beside(c, report) - resident
    least, most = (max((getattr(e, size) for e in shown), default=0) for size in ("bytes", "upper_bytes"))
    norms = NORM_BYTES * len(c.ledger.trainable.numels)
    factored = c.ledger.optimizer.name == "adafactor" and c.zero_stage == 0  # resident states are an upper bound
    low = -resident if factored else least - padding_bytes(c) - single_numbers_bytes(c)
    holds = low <= above <= most or (not factored and above in (least + norms, norms))
    return Row(
        line="step, at its fullest",
        section=Item.STEP_TEMPORARIES.section,
        moment=moment,
        planned_bytes=resident + least,
        measured_bytes=resident + above,
        least_bytes=resident + low,
        most_bytes=resident + most,
        holds=holds,
    )


def beside(c: Candidate, report: Report) -> int:
    """Bytes that are alive besides states: rotary tables, and the tokens of all ranks and micro-steps."""
    workload = c.setting.workload
    return beside_at_start(report) + TOKEN_BYTES * workload.seq_len * workload.global_batch


def beside_at_start(report: Report) -> int:
    """Rotary tables, and bitsandbytes' table of 8-bit codes (1,024 bytes a process), which are no states."""
    return sum(report.most("start")[category] for category in ("buffers", "libraries"))


def padding_bytes(c: Candidate) -> int:
    """Stages 1 and 2 pad the last slice with a tensor of so few elements that peaks may not follow it."""
    if c.zero_stage not in (1, 2):
        return 0
    tensors, ranks = c.ledger.trainable, c.setting.world_size
    return c.ledger.computation.precision.bytes * (flat_partition(tensors, ranks) * ranks - tensors.total)


def single_numbers_bytes(c: Candidate) -> int:
    """At most: the offset of each NF4 tensor, and its second-level scales where they are two; peaks do not follow them.

    Source:
        bitsandbytes 0.50.2 functional.py ``quantize_4bit``; strategies/qlora.py, ``scales_bytes``.
    """
    if not c.ledger.computation.quantized:
        return 0
    return (FP32 + SCALAR_BYTES) * len(quantized_tensors(c.setting.model).numels)


def start_row(c: Candidate, report: Report) -> Row:
    """Flattening, a first step on zeros, fp32 copies, one tensor gathered: exactly.

    With offload GPU and host are fullest at other times, and Adafactor's states are less at stage 0. Stage 3 gathers
    one tensor after another, and gloo may not yet have let go of the one before. A model that is whole on the GPU at
    first is so before anything is on the host: the peak is the larger of both, not their sum.
    """
    entries = alive(c, Phase.START)
    planned = sum(e.bytes for e in entries)
    gathered = sum(e.bytes for e in entries if e.item is Item.FLATTENING) if c.zero_stage == 3 else 0
    exactly = c.zero_stage == 3 or not (offloads(c) or ignored_items(c))
    measured = report.peak("start") - beside_at_start(report)
    on_host = sum(e.bytes for e in entries if e.device is Device.HOST)
    least = planned if c.ledger.zero_init else planned - min(gathered, on_host)
    return bounded(
        "start-up, at its fullest", Item.FLATTENING.section, "start", planned, measured,
        least=least - single_numbers_bytes(c) if exactly else 0, most=planned + gathered,
    )  # fmt: skip


def offloads(c: Candidate) -> bool:
    """Whether states lie outside the GPU."""
    zero = c.ledger.deepspeed.get("zero_optimization", {})
    return "offload_optimizer" in zero or "offload_param" in zero


def engine_rows(c: Candidate, report: Report, steps: int) -> tuple[Row, ...]:
    """Everything that processes on a CPU can show of a ledger's states."""
    return (
        *state_rows(c, report, steps, ignored_items(c)),
        *unexplained_rows(c, report, steps),
        gathered_row(c, report, steps),
        *retained_rows(c, report, steps),
        step_row(c, report, steps),
        start_row(c, report),
    )
