"""What a run leaves behind is read safely: logs, snapshots, nvidia-smi; each wrong one is one line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.planner.calibrate import log, smi, snapshot
from trainplan.planner.errors import InputError
from trainplan.planner.units import GIB, MIB

JOB = {
    "event": "job", "schema_version": 1, "plan": "plan.json", "plan_sha256": "ab", "time": "2026-11-26T00:00:00Z",
    "world_size": 8, "device": "cuda", "gpu": "NVIDIA A100-SXM4-80GB", "gpu_memory_bytes": 80 * GIB,
    "versions": {"torch": "2.13.0"}, "resumed_step": 0,
}  # fmt: skip


def step(number: int, **values: Any) -> dict[str, Any]:
    """A step's line; the first ones are slow."""
    slow = {1: 60.0, 2: 20.0}.get(number, 10.0)
    peaks = {"allocated_bytes": 50 * GIB, "reserved_bytes": 54 * GIB, "device_bytes": 55 * GIB, "host_bytes": GIB}
    return {"event": "step", "step": number, "loss": 2.0, "step_s": slow, **peaks, **values}


def written(folder: Path, *events: dict[str, Any], tail: str = "") -> Path:
    """A log of these lines, and perhaps the beginning of one more."""
    path = folder / "measured.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + tail, encoding="utf-8")
    return path


def test_a_log_is_its_median_step_and_largest_peaks(tmp_path: Path) -> None:
    """Five steps are warm-up; of 10, 11, 12 the median is 11; the largest peak counts whenever it was."""
    times = [step(n) for n in range(1, 6)] + [step(6, step_s=12.0), step(7, step_s=10.0), step(8, step_s=11.0)]
    times[0]["allocated_bytes"] = 51 * GIB
    found = log.read_log(written(tmp_path, JOB, *times, {"event": "promise", "step": 5}, {"event": "later"}))
    assert found.measured.step_s == 11.0
    assert found.measured.memory == (51 * GIB, 54 * GIB, 55 * GIB)
    assert (found.steps, found.timed) == (8, 3)
    assert found.notes[0].startswith("3 of 8 steps timed; the first 5 are warm-up: kernels compile")


def test_each_start_warms_up_again(tmp_path: Path) -> None:
    """A resumed job compiles anew: its first steps are not timed either."""
    first = [step(n) for n in range(1, 9)]
    again = [step(n, step_s=99.0) for n in range(9, 14)] + [step(14, step_s=10.5)]
    found = log.read_log(written(tmp_path, JOB, *first, JOB, *again))
    assert (found.measured.step_s, found.timed) == (10.0, 4)
    assert "of each of 2 starts" in found.notes[0]


def test_too_few_steps_give_no_time(tmp_path: Path) -> None:
    """Seven steps leave two after warm-up: peaks are read, time is not, and that is said."""
    found = log.read_log(written(tmp_path, JOB, *(step(n) for n in range(1, 8))))
    assert found.measured.step_s is None
    assert found.measured.allocated_bytes == 50 * GIB
    assert found.notes[0].startswith("no time: 2 of 7 steps are left, 3 are needed")


def test_a_cut_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    """What a job was writing when it stopped is no error; anywhere else it is, with its line."""
    events = [JOB, *(step(n) for n in range(1, 10))]
    assert "line 11 is cut short and left out" in log.read_log(written(tmp_path, *events, tail='{"event": "st')).notes
    path = tmp_path / "measured.jsonl"
    path.write_text(json.dumps(JOB) + "\n{\n" + json.dumps(step(1)) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"measured\.jsonl:2: not a JSON object"):
        log.read_log(path)


BAD_LOGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", 'no line with "event": "job"'),
    "no steps": (json.dumps(JOB).encode() + b"\n", "no steps"),
    "step first": (json.dumps(step(1)).encode() + b"\n", ":1: a step before the first job line"),
    "another version": (json.dumps(JOB | {"schema_version": 2}).encode() + b"\n", "schema_version is 2"),
    "no number": (
        b"\n".join(json.dumps(e).encode() for e in (JOB, step(1, step_s="x"))) + b"\n",
        ":2: step_s is 'x', not a number",
    ),
    "not a number": (b"\n".join(json.dumps(e).encode() for e in (JOB, step(1, step_s=float("nan")))) + b"\n", "is nan"),
    "negative": (b"\n".join(json.dumps(e).encode() for e in (JOB, step(1, allocated_bytes=-1))) + b"\n", "is -1"),
    "flag": (b"\n".join(json.dumps(e).encode() for e in (JOB, step(1, allocated_bytes=True))) + b"\n", "is True"),
    "escape": (json.dumps(JOB | {"gpu": "\x1b[31m"}).encode() + b"\n", "gpu is '\\x1b[31m'"),
    "deep": (b"[" * 60_000 + b"\n" + json.dumps(JOB).encode() + b"\n", ":1: not a JSON object"),
    "long line": (json.dumps(JOB | {"x": "y" * 70_000}).encode() + b"\n\n", ":1: not a JSON object of at most 65,536"),
    "binary": (bytes(range(256)) + b"\n" + json.dumps(JOB).encode() + b"\n", "not a JSON object"),
}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_a_wrong_log_is_one_line(case: str, tmp_path: Path) -> None:
    """Where, what is wrong, what to do."""
    data, words = BAD_LOGS[case]
    (tmp_path / "measured.jsonl").write_bytes(data)
    with pytest.raises(InputError) as caught:
        log.read_log(tmp_path / "measured.jsonl")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger than any log: refused before it is parsed."""
    monkeypatch.setattr(log, "LARGEST_BYTES", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        log.read_log(written(tmp_path, JOB, step(1)))


# -------------------------------------------------------------------------------------------------------- snapshots


def block(size: int, state: str = "active_allocated") -> dict[str, Any]:
    """A piece of a segment."""
    return {"size": size, "requested_size": size - 12, "address": 1, "state": state, "frames": []}


def segment(*blocks: dict[str, Any], device: int = 0, total: int = 0) -> dict[str, Any]:
    """Memory of one cudaMalloc."""
    size = total or sum(b["size"] for b in blocks)
    return {
        "device": device, "address": 1, "total_size": size, "stream": 0, "segment_type": "large",
        "segment_pool_id": (0, 0), "allocated_size": 0, "active_size": 0, "blocks": list(blocks), "is_expandable": True,
    }  # fmt: skip


def event(action: str, size: int) -> dict[str, Any]:
    """An entry of the history."""
    return {"action": action, "addr": 1, "size": size, "stream": 0, "frames": [], "time_us": 5}


def dumped(folder: Path, value: Any, protocol: int = 4) -> Path:
    """A snapshot as torch writes it."""
    path = folder / "snap.pickle"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_a_snapshot_is_its_segments_and_active_blocks(protocol: int, tmp_path: Path) -> None:
    """Reserved is the sum of segments, allocated of blocks in use; of two GPUs the fullest."""
    state = {
        "segments": [
            segment(block(20 * MIB), block(4 * MIB, "inactive")),
            segment(block(8 * MIB), block(2 * MIB, "active_awaiting_free")),
            segment(block(5 * MIB), device=1),
        ],
        "device_traces": [],
        "allocator_settings": {"expandable_segments": True, "garbage_collection_threshold": 0.0},
    }
    found = snapshot.read_snapshot(dumped(tmp_path, state, protocol))
    assert found.memory == (28 * MIB, 34 * MIB, None)


def test_a_history_gives_the_peak(tmp_path: Path) -> None:
    """Walked back from 10 MiB in 16: 30 were freed after 24 were made, 40 of the 56 mapped were unmapped."""
    history = [
        event("segment_map", 40 * MIB),
        event("alloc", 30 * MIB),
        event("oom", 99 * MIB),
        event("free_requested", 30 * MIB),
        event("free_completed", 30 * MIB),
        event("segment_unmap", 40 * MIB),
        event("snapshot", 0),
    ]
    state = {"segments": [segment(block(10 * MIB), total=16 * MIB)], "device_traces": [history]}
    assert snapshot.read_snapshot(dumped(tmp_path, state)).memory == (40 * MIB, 56 * MIB, None)


class Runs:
    """What a malicious pickle is made of: reading it plainly would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_not_run(protocol: int, tmp_path: Path) -> None:
    """Inside a snapshot that is otherwise good: refused, named, and nothing happened."""
    target = tmp_path / "owned"
    state = {"segments": [segment(block(MIB)) | {"frames": [Runs(target)]}]}
    path = dumped(tmp_path, state, protocol)
    with pytest.raises(InputError, match="it was not run"):
        snapshot.read_snapshot(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the same bytes, run: so that the test would have seen it
    assert target.exists()


def test_the_second_lock_holds_alone() -> None:
    """Even past the opcodes no name is looked up."""
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir"):
        snapshot._Plain(io.BytesIO(pickle.dumps(Runs(Path("x"))))).load()


NO_SNAPSHOTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"hello",
    "list": pickle.dumps([1, 2]),
    "no segments": pickle.dumps({"segments": []}),
    "segments of numbers": pickle.dumps({"segments": [1]}),
    "a size that is none": pickle.dumps({"segments": [segment(block(MIB)) | {"total_size": -1}]}),
    "a huge size": pickle.dumps({"segments": [segment(block(10**30))]}),
    "a flag": pickle.dumps({"segments": [segment(block(MIB)) | {"total_size": True}]}),
    "cut short": pickle.dumps({"segments": [segment(block(MIB))]})[:-20],
    "a far memo": b"\x80\x04]r\xff\xff\xff\xff.",
    "an object": pickle.dumps(Path("x")),
    "many devices": pickle.dumps({"segments": [segment(block(MIB), device=-3)]}),
}


@pytest.mark.parametrize("case", NO_SNAPSHOTS)
def test_a_wrong_snapshot_is_one_line(case: str, tmp_path: Path) -> None:
    """Whatever it holds."""
    path = tmp_path / "snap.pickle"
    path.write_bytes(NO_SNAPSHOTS[case])
    with pytest.raises(InputError) as caught:
        snapshot.read_snapshot(path)
    assert str(caught.value).isprintable()
    assert "_dump_snapshot" in str(caught.value) or "while the job runs" in str(caught.value)


def test_shared_lists_are_not_walked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that stand for 10,000 blocks: counted, and refused above the bound."""
    monkeypatch.setattr(snapshot, "MOST_ITEMS", 1000)
    one = segment(*[block(MIB)] * 100)
    with pytest.raises(InputError, match="more than 1,000 segments"):
        snapshot.read_snapshot(dumped(tmp_path, {"segments": [one] * 100}))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), at=st.integers(0, 400))
def test_noise_in_a_snapshot_never_escapes(data: bytes, at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random bytes, alone or inside a good snapshot: a result or one line."""
    good = pickle.dumps({"segments": [segment(block(MIB))]})
    path = tmp_path_factory.mktemp("noise") / "snap.pickle"
    path.write_bytes(good[:at] + data + good[at + len(data) :])
    with contextlib.suppress(InputError):
        assert snapshot.read_snapshot(path).reserved_bytes is not None


# -------------------------------------------------------------------------------------------------------- nvidia-smi

SMI = """index, name, memory.used [MiB], memory.total [MiB]
0, NVIDIA A100-SXM4-80GB, 40536 MiB, 81920 MiB
1, NVIDIA A100-SXM4-80GB, 41000 MiB, 81920 MiB
"""


def test_nvidia_smi_with_and_without_units(tmp_path: Path) -> None:
    """Both forms give the same cards."""
    path = tmp_path / "smi.csv"
    path.write_text(SMI, encoding="utf-8")
    cards = smi.read_smi(path)
    path.write_text(SMI.replace(" MiB,", ",").replace(" MiB\n", "\n"), encoding="utf-8")
    assert smi.read_smi(path) == cards
    assert [(c.index, c.used_bytes // MIB, c.total_bytes // MIB) for c in cards] == [
        ("0", 40536, 81920),
        ("1", 41000, 81920),
    ]
    assert {c.name for c in cards} == {"NVIDIA A100-SXM4-80GB"}


def test_repeated_tables_give_the_largest(tmp_path: Path) -> None:
    """nvidia-smi -l prints the rows again and again: each GPU at its fullest."""
    path = tmp_path / "smi.csv"
    path.write_text(SMI + SMI.replace("40536", "60000"), encoding="utf-8")
    assert [c.used_bytes // MIB for c in smi.read_smi(path)] == [60000, 41000]


NO_TABLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "blank": (b"\n \n", "empty"),
    "no header": (b"0, NVIDIA A100, 5 MiB, 9 MiB\n", "no header with memory.used"),
    "header alone": (SMI.splitlines()[0].encode(), "no GPUs below the header"),
    "another unit": (SMI.replace("used [MiB]", "used [GiB]").encode(), "not in MiB, got 'memory.used [GiB]'"),
    "cells": (SMI.encode() + b"2, x\n", ":4: 2 cells, the header has 4"),
    "no number": (SMI.replace("41000 MiB", "[N/A]").encode(), ":3: memory.used: not an amount, got '[N/A]'"),
    "not text": (b"\xff\xfe\x00memory", "not CSV"),
}


@pytest.mark.parametrize("case", NO_TABLES)
def test_a_wrong_table_is_one_line(case: str, tmp_path: Path) -> None:
    """Where, what, and the command that writes a right one."""
    data, words = NO_TABLES[case]
    path = tmp_path / "smi.csv"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        smi.read_smi(path)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("read", [log.read_log, snapshot.read_snapshot, smi.read_smi])
def test_no_file_is_one_line(read: Any, tmp_path: Path) -> None:
    """Missing, a folder, a name that no system takes."""
    for path in (tmp_path / "none", tmp_path, Path("a\x00b")):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).isprintable()
