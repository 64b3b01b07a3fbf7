"""Measured rows fitted to a profile: what depends on the platform moves, what is arithmetic stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..planner.calibration import Calibration
from ..planner.candidate import Candidate, step_time
from ..planner.errors import InputError, listed
from ..planner.evaluate import with_live_excess
from ..planner.hardware import calibrated
from ..planner.memory import GpuMemory, gpu_memory
from ..planner.planfile import read_plan, request_of
from ..planner.time import StepTime
from .rebuilding import candidate_of, decided

if TYPE_CHECKING:
    from ..planner.calibrate.cases import Case, Measured
    from ..planner.calibrate.log import Log
    from ..planner.calibrate.outcome import Outcome, Refused
    from ..planner.calibrate.profile import Profile
    from ..planner.calibrate.smi import Card


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A profile and how it came about."""

    outcome: Outcome

    @property
    def profile(self) -> Profile:
        """The figures of the platform."""
        return self.outcome.profile

    @property
    def text(self) -> str:
        """The profile as a file."""
        from ..planner.calibrate.profile import text_of

        return text_of(self.profile)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        from ..planner.calibrate.document import document

        return document(self.outcome)


def calibrate(
    *sources: str,
    snapshot: str | None = None,
    nvidia_smi: str | None = None,
    gpu: str | None = None,
    good_rows: bool = False,
) -> Calibrated:
    """Fit what depends on the platform to measured rows: rates, allocator, context, live excess.

    Args:
        sources: plan folders or plan.json files, whose measured.jsonl lies beside them; or tables (CSV) in the columns
            that ``validate`` reads.
        snapshot: a PyTorch memory snapshot of the one plan that is given.
        nvidia_smi: what nvidia-smi printed while it ran.
        gpu: rows of this type alone.
        good_rows: the good rows of a table that has problems.

    Returns:
        The profile, for ``plan(..., profile=FILE)`` once its ``text`` is written to a file.

    Raises:
        InputError: a file cannot be read, rows are of several GPU types, or nothing is left to fit.
    """
    from ..planner.calibrate.outcome import outcome_of
    from ..planner.catalog import find_gpu

    given = dict.fromkeys(sources)  # each once
    tables = [source for source in given if source.lower().endswith(".csv")]
    plans = [source for source in given if source not in tables]
    _check_given(plans, tables, snapshot, nvidia_smi)
    attempts = [*_rows_of(tables, good_rows=good_rows), *(_of_plan(plan, snapshot, nvidia_smi) for plan in plans)]
    wanted = find_gpu(gpu).name if gpu else None
    cases, refused = _sorted(attempts, wanted)
    return Calibrated(outcome=outcome_of(cases, refused))


def _check_given(plans: Sequence[str], tables: Sequence[str], snapshot: str | None, smi: str | None) -> None:
    """Something is given, and what belongs to one plan has one."""
    if not plans and not tables:
        raise InputError("calibrate: nothing given; allowed are plan folders and CSV tables; name at least one")
    for name, value in (("snapshot", snapshot), ("nvidia-smi", smi)):
        if value is not None and len(plans) != 1:
            raise InputError(f"--{name}: belongs to one plan, got {len(plans)}; name the plan's folder, once")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One row as a file has it: a case, or why it is none."""

    label: str
    source: str
    case: Case | None = None
    reason: str = ""


def _sorted(attempts: Sequence[Attempt], wanted: str | None) -> tuple[list[Case], list[Refused]]:
    """The rows of one GPU type, since a profile is of one, and the others with their reasons.

    Raises:
        InputError: there are several types and none is named, or none of the one that is.
    """
    from ..planner.calibrate.outcome import Refused

    names = sorted({a.case.gpu for a in attempts if a.case})
    if wanted is None and len(names) > 1:
        raise InputError(f"calibrate: rows are of {', '.join(names)}, a profile is of one type; choose with --gpu NAME")
    if wanted is not None and names and wanted not in names:
        raise InputError(f"--gpu {wanted}: no row is of it, they are of {', '.join(names)}; name one of these")
    cases, refused = list[Any](), list[Any]()
    for a in attempts:
        if a.case and wanted in (None, a.case.gpu):
            cases.append(a.case)
        else:
            reason = a.reason or (f"a row of {a.case.gpu}" if a.case else "")
            refused.append(Refused(label=a.label, source=a.source, what="", reason=reason))
    return cases, refused


def _rows_of(tables: Sequence[str], *, good_rows: bool) -> Iterator[Attempt]:
    """Rows of tables, and those that cannot be planned."""
    from ..planner.measurements.table import Unsupported, read_table
    from ..strategies.measured import case_of

    for name in tables:
        table, file = read_table(Path(name)), Path(name).name
        if table.problems and not good_rows:
            raise InputError(f"correct these, or fit the other rows with --good-rows: {listed(table.problems)}")
        for row in table.rows:
            try:
                yield Attempt(label=row.identity, source=file, case=case_of(row, file))
            except Unsupported as reason:
                yield Attempt(label=row.identity, source=file, reason=str(reason))


# ---------------------------------------------------------------------------------------------------- a plan's own run


def _of_plan(source: str, snapshot: str | None, smi: str | None) -> Attempt:
    """A plan with what its run left beside it."""
    from ..planner.calibrate.log import NAME
    from ..planner.measurements.table import Unsupported

    path = _plan_file(source)
    document = read_plan(str(path))
    chosen = document["decision"]
    candidate = candidate_of(document, wanted=decided(replace(request_of(document), profile=None), chosen))
    label = f"{document['model']['name']}, {chosen['gpus']} x {chosen['gpu']}, {path.parent.name or path.stem}"
    files = (path.parent / NAME, *(Path(name) for name in (snapshot, smi) if name))
    file = ", ".join(f.name for f in files if f.exists())
    try:
        measured, notes = _measured(path, candidate, snapshot, smi)
    except Unsupported as reason:
        return Attempt(label=label, source=file, reason=str(reason))
    return Attempt(label=label, source=file, case=case_from(candidate, measured, label, file, "; ".join(notes)))


def case_from(candidate: Candidate, measured: Measured, label: str, source: str, note: str = "") -> Case:
    """A row of a plan's own run; the candidate is assessed without a profile."""
    from ..planner.calibrate.cases import Case

    return Case(
        label=label,
        source=source,
        gpu=candidate.offer.node.gpu.name,
        measured=measured,
        memory=partial(_memory, candidate),
        step=partial(_step, candidate),
        note=note,
    )


def _plan_file(source: str) -> Path:
    path = Path(source)
    if path.suffix == ".jsonl":
        return path.parent / "plan.json"
    return path / "plan.json" if path.is_dir() else path


def _memory(candidate: Candidate, calibration: Calibration) -> GpuMemory:
    gpu = calibrated(candidate.offer.node.gpu, calibration)
    return gpu_memory(with_live_excess(candidate.ledger, calibration.live), gpu, candidate.setting.communicators)


def _step(candidate: Candidate, calibration: Calibration) -> StepTime:
    node = candidate.offer.node
    own = replace(node, gpu=calibrated(node.gpu, calibration))
    return step_time(candidate.ledger, candidate.setting, own)


def _measured(path: Path, candidate: Candidate, snapshot: str | None, smi: str | None) -> tuple[Measured, list[str]]:
    """The largest of what each file says."""
    from ..planner.calibrate.cases import Measured
    from ..planner.calibrate.log import NAME, read_log
    from ..planner.calibrate.smi import read_smi
    from ..planner.calibrate.snapshot import read_snapshot

    found, notes, step_s = list[Measured](), list[str](), None
    log = path.parent / NAME
    if log.exists() or not (snapshot or smi):
        read = read_log(log)
        _check_log(read, path, candidate)
        found.append(read.measured)
        notes += read.notes
        step_s = read.measured.step_s
    if snapshot is not None:
        found.append(read_snapshot(Path(snapshot)))
        notes.append(f"snapshot {Path(snapshot).name}")
    if smi is not None:
        cards = _planned_cards(read_smi(Path(smi)), candidate, where=Path(smi).name)
        found.append(Measured(device_bytes=max(card.used_bytes for card in cards)))
        notes.append(f"the fullest of {len(cards)} GPUs of {Path(smi).name}")
    peaks = {name: max((getattr(m, name) or 0 for m in found), default=0) or None for name in _PEAKS}
    return Measured(**peaks, step_s=step_s), notes


_PEAKS = ("allocated_bytes", "reserved_bytes", "device_bytes")


def _check_log(log: Log, path: Path, candidate: Candidate) -> None:
    """It is of this plan, on its GPUs.

    Raises:
        Unsupported: it is not.
    """
    from ..planner.measurements.table import Unsupported

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for job in log.jobs:
        if job.device != "cuda":
            raise Unsupported(f"it ran on {job.device or 'an unknown device'}, which says nothing of a GPU")
        if job.plan_sha256 != digest:
            raise Unsupported("plan.json is not the one that it ran under (plan_sha256 differs); put that one back")
        if job.world_size != candidate.gpus:
            raise Unsupported(f"{job.world_size} ranks ran, the plan has {candidate.gpus}: another job")
        if another := _another(job.gpu, job.gpu_memory_bytes, candidate):
            raise Unsupported(f"the log {another}")


def _planned_cards(cards: Sequence[Card], candidate: Candidate, *, where: str) -> list[Card]:
    """Those of the plan's type, or of no stated name; another in the same machine drives its screen.

    Raises:
        Unsupported: there are none.
    """
    from ..planner.measurements.table import Unsupported

    found = [card for card in cards if not _another(card.name, card.total_bytes, candidate)]
    if not found:
        raise Unsupported(f"{where} {_another(cards[0].name, cards[0].total_bytes, candidate)}")
    return found


def _another(name: str, memory_bytes: int, candidate: Candidate) -> str:
    """What is wrong with a name that the driver gives; "" where it is the plan's GPU, or there is none."""
    from ..planner.measurements.machine import gpu_named
    from ..planner.units import GIB

    planned = candidate.offer.node.gpu.name
    found = gpu_named(name, memory_bytes / GIB) if name else None
    if not name or (found and found.name == planned):
        return ""
    known = found.name if found else "not in the catalog"
    return f"names {name} ({known}), the plan is for {planned}; a profile is of the GPU that ran"
