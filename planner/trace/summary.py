"""From births and deaths to peaks by phase, and what is alive at the largest.

A storage counts as what it turned out to be, from its birth: a weight's gradient is one already while it is in flight.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..allocator import FREE, replay
from ..model import Model
from . import Alive, Category, Subject, Trace
from .live import LiveStorages, Storage

ACTIVATIONS = frozenset({Category.SAVED, Category.TEMPORARIES})
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
WRAPPER = re.compile(r"^base_model\.model(\.|$)")  # peft's


@dataclass(frozen=True, slots=True)
class Peak:
    """The most that was alive in a phase, and after how many events."""

    bytes: int
    at: int


def summarised(live: LiveStorages, subject: Subject, *, seconds: float) -> Trace:
    """Sum up a run that has ended."""
    _settle(live.events, subject)
    everything = running(live.events, tuple(Category))
    peaks = phase_peaks(live, everything)
    activations = phase_peaks(live, running(live.events, ACTIVATIONS))
    phase = max(peaks, key=lambda name: peaks[name].bytes)
    start = dict(reversed(live.phases))  # of the first phase of that name
    first, saved = alive_at(live.events, start["forward"]), alive_at(live.events, start["backward"])
    highest, updated = (alive_at(live.events, peaks[name].at) for name in (phase, "step"))
    return Trace(
        parameter_bytes=size(first, Category.PARAMETERS),
        buffer_bytes=size(first, Category.BUFFERS),
        gradient_bytes=size(alive_at(live.events, start["step"]), Category.GRADIENTS),
        optimizer_bytes=size(updated, Category.OPTIMIZER),
        saved_after_forward_bytes=size(saved, Category.SAVED),
        activation_peak_bytes={name: peak.bytes for name, peak in activations.items() if name != "step"},
        peak_bytes={name: peak.bytes for name, peak in peaks.items()},
        alive=grouped(highest),
        peak_phase=phase,
        peak_operation=operation_name(live.events[peaks[phase].at - 1].operation),
        workspace_peak_bytes=max(peaks[phase].bytes, *(everything[i] + inside for i, inside in live.workspaces), 0),
        reserved_peak_bytes={name: reserved(live.events, name) for name in ("expandable", "native")},
        operations=live.operations,
        seconds=seconds,
    )


def reserved(events: Sequence[Storage], mode: str) -> int:
    """Peak of what the caching allocator holds for these births and deaths."""
    return replay(_requests(events), expandable=mode == "expandable").peak_reserved


def _requests(events: Sequence[Storage]) -> Iterator[tuple[int, int]]:
    """Every birth as a request, every death as its return."""
    born: set[int] = set()
    for storage in events:
        key = id(storage)
        yield key, FREE if key in born else storage.bytes
        born.add(key)


def _settle(events: Iterable[Storage], subject: Subject) -> None:
    """A tied embedding's gradient comes in two parts, which autograd adds up itself: neither is handed over by name."""
    shape = _tied_shape(subject.model) if subject.computation.adapters is None else None
    for storage in events:
        if storage.shape == shape and storage.category in ACTIVATIONS:
            storage.category = Category.GRADIENTS


def _tied_shape(model: Model) -> tuple[int, ...] | None:
    return model.embedding[0].shape if model.tied else None


def running(events: Sequence[Storage], counted: Collection[Category]) -> list[int]:
    """Bytes alive of these categories after each number of events, from none on."""
    wanted = frozenset(counted)
    total, totals = 0, [0]
    born: set[int] = set()
    for storage in events:
        if storage.category in wanted:
            key = id(storage)
            if key in born:
                total -= storage.bytes
            else:
                born.add(key)
                total += storage.bytes
        totals.append(total)
    return totals


def phase_peaks(live: LiveStorages, totals: Sequence[int]) -> dict[str, Peak]:
    """The largest total of each phase; a phase that comes again counts once."""
    peaks: dict[str, Peak] = {}
    ends = [index for _, index in live.phases[1:]] + [len(live.events)]
    for (name, start), end in zip(live.phases, ends, strict=True):
        at = max(range(start, end + 1), key=totals.__getitem__)
        if name not in peaks or totals[at] > peaks[name].bytes:
            peaks[name] = Peak(totals[at], at)
    return peaks


def alive_at(events: Sequence[Storage], number: int) -> list[Storage]:
    """What is alive after so many events."""
    alive: dict[int, Storage] = {}
    for storage in events[:number]:
        if alive.pop(id(storage), None) is None:
            alive[id(storage)] = storage
    return list(alive.values())


def size(storages: Iterable[Storage], category: Category) -> int:
    """Bytes of one category."""
    return sum(storage.bytes for storage in storages if storage.category is category)


def grouped(storages: Iterable[Storage]) -> tuple[Alive, ...]:
    """Equal storages of all layers together, the largest group first."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for s in storages:
        key = (s.category, module_kind(s.module), operation_name(s.operation), s.shape, dtype_name(s.dtype))
        groups[key].append(s.bytes)
    found = (
        Alive(category=c, module=m, operation=o, shape=shape, dtype=dtype, count=len(sizes), bytes=sum(sizes))
        for (c, m, o, shape, dtype), sizes in groups.items()
    )
    return tuple(sorted(found, key=lambda group: (-group.bytes, group.module, group.operation)))


def module_kind(name: str) -> str:
    """A module's name without the number of its layer.

    >>> module_kind("model.layers.31.mlp.down_proj"), module_kind("base_model.model.lm_head")
    ('model.layers.*.mlp.down_proj', 'lm_head')
    """
    return NUMBER.sub("*", WRAPPER.sub("", name))


def operation_name(operation: Any) -> str:
    """ "mm" of aten.mm.default."""
    return str(operation).removeprefix("aten.").rpartition(".")[0] or str(operation)


def dtype_name(dtype: Any) -> str:
    """ "bfloat16" of torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
