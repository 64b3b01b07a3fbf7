"""PyTorch's memory snapshot (``torch.cuda.memory._dump_snapshot``): a pickle, which is a program and not trusted.

Its opcodes are read before any of them runs: only those that make containers, numbers and texts are admitted, so that
nothing can be imported or called. Of the fullest GPU:

    reserved   sum of the segments' total_size
    allocated  sum of the blocks in state active_allocated

Where a history was recorded (``device_traces``), it is walked backwards from that state: the peaks are the largest sums
on the way. A history that was cut short holds the peak of what it still covers.

Source:
    torch 2.13.0 torch/cuda/memory.py, ``_snapshot``: the layout.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..bounded import named, read_bounded
from ..errors import InputError
from .cases import Measured

LARGEST_BYTES = 256 * 2**20
MOST_ITEMS = 5_000_000  # segments, blocks and events that are looked at
LARGEST_SIZE = 2**50
WRITE = 'write one with torch.cuda.memory._dump_snapshot("FILE") and no stacks (context=None)'
PLAIN = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP",
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "EMPTY_LIST", "APPEND", "APPENDS", "LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
})  # fmt: skip
GROWS = {"alloc": 1, "free_requested": -1}  # what tensors hold
MAPS = {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}  # what the allocator holds


class _Plain(pickle.Unpickler):
    """Containers, numbers and texts; the second lock behind the opcodes."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """No class, no function."""
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_snapshot(path: Path) -> Measured:
    """Allocated and reserved memory of the fullest GPU.

    Raises:
        InputError: it cannot be read, is too large, holds more than plain values, or is no snapshot.
    """
    data = read_bounded(path, LARGEST_BYTES, do="a memory snapshot is needed; give its name", larger=f"; {WRITE}")
    where = named(path)
    try:
        return _measured(_unpickled(data, where), where)
    except InputError:
        raise
    except Exception as error:  # a crafted pickle can fail in any way: all of them mean the same
        raise InputError(f"{where}: no memory snapshot, {type(error).__name__}; {WRITE}") from None


def _unpickled(data: bytes, where: str) -> Any:
    """The object, once every opcode was seen to be plain."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in PLAIN:
            what = f"{opcode.name} {str(argument)[:60]}" if argument is not None else opcode.name
            raise InputError(
                f"{where}: holds more than lists, dicts, numbers and texts ({_printable(what)}), as no snapshot does; "
                f"it was not run; {WRITE}"
            )
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise InputError(f"{where}: a memo index beyond its own size, as no snapshot has; it was not run; {WRITE}")
    return _Plain(io.BytesIO(data)).load()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _measured(snapshot: Any, where: str) -> Measured:
    if not (isinstance(snapshot, dict) and isinstance(snapshot.get("segments"), list)):
        raise InputError(f"{where}: no memory snapshot, it has no list of segments; {WRITE}")
    items = _Counted(where)
    reserved: dict[int, int] = {}
    allocated: dict[int, int] = {}
    for segment in items.of(snapshot["segments"]):
        device = _whole(segment.get("device", 0), where)
        reserved[device] = reserved.get(device, 0) + _whole(segment["total_size"], where)
        active = (b for b in items.of(segment["blocks"]) if b.get("state") == "active_allocated")
        allocated[device] = allocated.get(device, 0) + sum(_whole(b["size"], where) for b in active)
    if not reserved:
        raise InputError(f"{where}: no segments: nothing was allocated on a GPU; take it while the job runs")
    traces = snapshot.get("device_traces") or []
    peaks = [_peaks(traces, d, allocated[d], reserved[d], items, where) for d in reserved]
    return Measured(allocated_bytes=max(a for a, _ in peaks), reserved_bytes=max(r for _, r in peaks))


def _peaks(traces: Any, device: int, allocated: int, reserved: int, items: _Counted, where: str) -> tuple[int, int]:
    """The largest sums on the way back through one GPU's history."""
    if not isinstance(traces, list) or not 0 <= device < len(traces):
        return allocated, reserved
    most, largest = allocated, reserved
    for event in items.of(traces[device][::-1]):
        action = event.get("action")
        if action in GROWS:
            allocated -= GROWS[action] * _whole(event["size"], where)
        elif action in MAPS:
            reserved -= MAPS[action] * _whole(event["size"], where)
        most, largest = max(most, allocated), max(largest, reserved)
    return most, largest


def _whole(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value <= LARGEST_SIZE:
        raise InputError(f"{where}: a size is {repr(value)[:40]}, not a whole number of bytes; {WRITE}")
    return value


class _Counted:
    """Items of lists, up to a number of all of them: shared lists make a small file long."""

    def __init__(self, where: str) -> None:
        self.left, self.where = MOST_ITEMS, where

    def of(self, items: Any) -> Iterator[Mapping[str, Any]]:
        """Each of a list of dicts."""
        for item in items:
            self.left -= 1
            if self.left < 0:
                raise InputError(f"{self.where}: more than {MOST_ITEMS:,} segments, blocks and events; {WRITE}")
            yield item
