"""measured.jsonl, which the emitted train.py writes beside its plan: one JSON object a line, appended.

Steps are timed from the sixth after each start on (configs/calibration.toml, warm_up): the median. Peaks are the
largest of all steps. A last line that was cut short is left out, and that is said; any other line that is no JSON
object is refused with its number.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bounded import named, read_bounded
from ..errors import InputError
from .cases import Measured
from .parameters import constant

LARGEST_BYTES = 64 * 2**20
LONGEST_LINE = 2**16
NAME = "measured.jsonl"
LARGEST_NUMBER = 1e16
PEAKS = ("allocated_bytes", "reserved_bytes", "device_bytes")
WRITES = "train.py of the plan writes it; give that file, or leave it out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One start of train.py."""

    plan_sha256: str
    world_size: int
    device: str
    gpu: str
    gpu_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What a log says of one plan."""

    jobs: tuple[Job, ...]
    measured: Measured
    steps: int
    timed: int
    notes: tuple[str, ...]


Event = Mapping[str, Any]


def read_log(path: Path) -> Log:
    """The peaks and the median step of a log.

    Raises:
        InputError: it cannot be read, a line but the last is no JSON object, or a value is of a wrong type.
    """
    data = read_bounded(
        path,
        LARGEST_BYTES,
        do="the measured.jsonl that train.py of the plan writes is needed; give its name",
        larger="; keep its last start, from a job line on",
    )
    where, notes = named(path), list[str]()
    starts = _starts(_events(data, where, notes), where)
    if not starts:
        raise InputError(f'{where}: no line with "event": "job"; {WRITES}')
    steps = [step for _, each in starts for step in each]
    if not steps:
        raise InputError(f"{where}: no steps; let the job run for some, or leave the file out")
    skipped = int(constant("warm_up", "steps"))
    times = [step["step_s"] for _, each in starts for step in each[skipped:]]
    enough = len(times) >= constant("warm_up", "least_steps")
    notes.append(_timing(len(steps), len(times), skipped, len(starts), enough=enough))
    peaks = {name: _largest(steps, name) for name in PEAKS}
    return Log(
        jobs=tuple(job for job, _ in starts),
        measured=Measured(**peaks, step_s=statistics.median(times) if enough else None),
        steps=len(steps),
        timed=len(times) if enough else 0,
        notes=tuple(notes),
    )


def _timing(steps: int, timed: int, skipped: int, starts: int, *, enough: bool) -> str:
    each = f" of each of {starts} starts" if starts > 1 else ""
    why = f"the first {skipped}{each} are warm-up: kernels compile, communicators and buffers are made"
    if enough:
        return f"{timed} of {steps} steps timed; {why}"
    return f"no time: {timed} of {steps} steps are left, {constant('warm_up', 'least_steps'):.0f} are needed; {why}"


def _largest(steps: list[Event], name: str) -> int | None:
    sizes = [step[name] for step in steps if step.get(name)]
    return max(sizes) if sizes else None


def _events(data: bytes, where: str, notes: list[str]) -> Iterator[tuple[int, Event]]:
    """Numbered events; a last line without an end is what a job was writing when it stopped."""
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        event = _event(line)
        if event is not None:
            yield number, event
        elif number == len(lines):
            notes.append(f"line {number} is cut short and left out")
        else:
            raise InputError(f"{where}:{number}: not a JSON object of at most {LONGEST_LINE:,} bytes; {WRITES}")


def _event(line: bytes) -> Event | None:
    if len(line) > LONGEST_LINE:
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _starts(events: Iterator[tuple[int, Event]], where: str) -> list[tuple[Job, list[Event]]]:
    """Each start with its steps."""
    found: list[tuple[Job, list[Event]]] = []
    for number, event in events:
        place = f"{where}:{number}"
        if event.get("event") == "job":
            found.append((_job(event, place), []))
        elif event.get("event") == "step":
            if not found:
                raise InputError(f"{place}: a step before the first job line; {WRITES}")
            found[-1][1].append(_step(event, place))
    return found


def _job(event: Event, place: str) -> Job:
    version = event.get("schema_version")
    if version != 1:
        raise InputError(f"{place}: schema_version is {_shown(version)}; this trainplan reads 1; {WRITES}")
    return Job(
        plan_sha256=_text(event, "plan_sha256", place),
        world_size=int(_number(event, "world_size", place) or 0),
        device=_text(event, "device", place),
        gpu=_text(event, "gpu", place),
        gpu_memory_bytes=int(_number(event, "gpu_memory_bytes", place) or 0),
    )


def _step(event: Event, place: str) -> Event:
    seconds = _number(event, "step_s", place)
    if not seconds:
        raise InputError(f"{place}: step_s is {_shown(event.get('step_s'))}, not a number above 0; {WRITES}")
    return {"step_s": float(seconds), **{name: int(_number(event, name, place) or 0) for name in PEAKS}}


def _text(event: Event, name: str, place: str) -> str:
    value = event.get(name)
    if not (value is None or (isinstance(value, str) and len(value) <= 200 and value.isprintable())):
        raise InputError(f"{place}: {name} is {_shown(value)}, not a text; {WRITES}")
    return value or ""


def _number(event: Event, name: str, place: str) -> float | None:
    """A number from 0 on, or None."""
    value = event.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= LARGEST_NUMBER):
        raise InputError(f"{place}: {name} is {_shown(value)}, not a number from 0 on; {WRITES}")
    return float(value)


def _shown(value: object) -> str:
    return repr(value)[:40]
