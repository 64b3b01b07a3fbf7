"""A table of measurements: one CSV row per run, every problem of the file with its line.

Columns are documented in docs/reference/measurements.md. A blank cell is "not stated". A number may be followed by
words: ``2048 default``, ``~8055 (long-alpaca)``; by a unit only where it is the column's own. Cells that cannot be read
are problems; a row that is only incomplete is not: whether it can be predicted is decided later.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import InputError, did_you_mean, listed
from ..units import DAY_S, GIB, HOUR_S

LARGEST_FILE_BYTES = 64 * 2**20
MOST_ROWS = 200_000
MOST_COLUMNS = 1000
LONGEST_CELL = 1000
LONGEST_NAME = 500  # of the file, in messages
# Digits, thousands joined by commas or underscores, then nothing or words apart: "12,5" and "20GB" are no numbers.
NUMBER = re.compile(
    r"[~≈<>=\s]*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)((?:[\s(].*)?)",
    re.DOTALL,
)
UNITS = {"bytes": 1, "b": 1, "gib": GIB, "mib": 2**20, "gb": 10**9, "mb": 10**6, "g": GIB}
# Words behind a number that would change it, and the columns whose own unit they are.
SCALES = frozenset({*UNITS, "tb", "tib", "k", "m", "t", "thousand", "million", "billion", "ms", "min", "minutes", "h"})
OWN_UNITS: Mapping[str, frozenset[str]] = {
    "peak_mem_gib": frozenset({"gib"}),
    "gpu_mem_gb": frozenset({"gb", "gib", "g"}),
}
REQUIRED = ("id", "model", "seq_len", "micro_batch", "n_gpus", "gpu")
RUN_COLUMNS = frozenset({"tokens", "gpu_hours"})  # a table that has both is one of whole runs
REQUIRED_OF_RUNS = ("id", "model", "seq_len", "n_gpus", "gpu")
MEASURED = ("peak_mem_gib", "peak_mem", "tokens_per_s_per_gpu", "tflops_per_gpu", "step_time_s", "outcome", "gpu_hours")
WHOLE = (
    *("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab", "lora_rank", "seq_len", "micro_batch"),
    *("grad_accum", "global_batch", "n_gpus", "n_nodes", "zero_stage", "dp", "tp", "pp", "vpp", "cp", "ep"),
)
AMOUNTS = (
    *("params", "gpu_mem_gb", "peak_mem", "peak_mem_gib", "tokens_per_s_per_gpu", "tflops_per_gpu", "step_time_s"),
    *("tokens", "global_batch_tokens", "gpu_hours", "wall_days"),
)
TEXTS = (
    *("id", "source", "model", "task", "lora_targets", "quant_base", "gpu", "interconnect", "precision"),
    *("master_weights", "optimizer", "optim_state_dtype", "sharding", "sp", "offload", "act_ckpt", "attn_impl"),
    *("chunked_ce", "framework", "mem_unit", "mem_kind", "outcome", "quality", "tied_emb", "moe", "compile", "notes"),
    *("tflops_kind", "parallelism", "inferred_fields"),
)
LARGEST = 1e16


class Unsupported(Exception):
    """The row cannot be expressed; the message says what is not modelled."""


class MemoryKind(Enum):
    """Which of the three memories a row reports."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One run: what was trained, how, and what was measured; 0 and "" are "not stated"."""

    line: int
    texts: Mapping[str, str]
    numbers: Mapping[str, float]
    whole_run: bool = False  # of a table of whole runs: what it leaves open, `runs` fills in

    def text(self, name: str) -> str:
        """A text cell."""
        return self.texts.get(name, "")

    def number(self, name: str) -> float:
        """A number; 0 where it is not stated."""
        return self.numbers.get(name, 0.0)

    def whole(self, name: str, default: int = 0) -> int:
        """A whole number, or the default where it is not stated."""
        return int(self.numbers.get(name, default))

    @property
    def identity(self) -> str:
        """The row's id."""
        return self.text("id")

    @property
    def peak_bytes(self) -> float:
        """Measured peak of one GPU; 0: none."""
        if "peak_mem_gib" in self.numbers:
            return self.number("peak_mem_gib") * GIB
        unit = self.text("mem_unit").lower().split()[:1]
        return self.number("peak_mem") * UNITS[unit[0]] if unit and "peak_mem" in self.numbers else 0.0

    @property
    def memory_kind(self) -> MemoryKind:
        """From the words of ``mem_kind``; what a framework prints without saying is what torch allocated."""
        words = self.text("mem_kind").lower()
        for kind in (MemoryKind.RESERVED, MemoryKind.ALLOCATED):
            if kind.value in words:
                return kind
        device = any(word in words for word in ("nvidia-smi", "device", "driver", "per gpu"))
        return MemoryKind.DEVICE if device else MemoryKind.ALLOCATED

    @property
    def tokens_per_s_per_gpu(self) -> float:
        """Measured throughput, from the step time where only that is stated; 0: none."""
        stated = self.number("tokens_per_s_per_gpu")
        if stated or not self.number("step_time_s") or not self.sequences:
            return stated
        return self.sequences * self.whole("seq_len") / self.number("step_time_s") / max(1, self.whole("n_gpus"))

    @property
    def is_timed(self) -> bool:
        """Whether a throughput, a rate of FLOPs or the time of a step is stated."""
        return any(self.number(name) for name in ("tokens_per_s_per_gpu", "tflops_per_gpu", "step_time_s"))

    @property
    def gpu_hours(self) -> float:
        """Of a whole run, from days and GPUs where only these are stated; 0: none."""
        if not self.whole_run:
            return 0.0
        return self.number("gpu_hours") or self.number("wall_days") * DAY_S / HOUR_S * self.whole("n_gpus")

    @property
    def is_measured(self) -> bool:
        """Whether there is anything to judge a prediction by."""
        return bool(self.peak_bytes or self.is_timed or self.gpu_hours or self.text("outcome"))

    @property
    def sequences(self) -> int:
        """Sequences of one optimizer step; 0: not stated."""
        return self.whole("global_batch") or self.whole("micro_batch") * self.whole("grad_accum") * self.replicas

    @property
    def micro_steps(self) -> int:
        """Micro-batches of one optimizer step: as stated, else what the global batch makes of them, else 1."""
        together = self.whole("micro_batch", 1) * self.replicas
        return self.whole("grad_accum") or max(1, self.whole("global_batch") // together)

    @property
    def replicas(self) -> int:
        """Data-parallel ranks: as stated, else the GPUs that other parallelism leaves."""
        if "device_map" in self.text("sharding").lower():
            return 1
        others = self.whole("tp", 1) * self.whole("pp", 1) * self.whole("cp", 1)
        return self.whole("dp") or max(1, self.whole("n_gpus", 1) // max(1, others))


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The good rows of a file, and everything wrong with the others."""

    where: str
    rows: tuple[Measurement, ...]
    problems: tuple[str, ...]
    unread: tuple[str, ...] = ()  # columns that mean nothing to us


def read_table(path: Path) -> Table:
    """Read a CSV of measurements.

    Args:
        path: the file.

    Returns:
        The rows that can be read, and a line of text for each problem.

    Raises:
        InputError: the file cannot be read as a table at all: too large, not UTF-8, no header, columns missing.
    """
    where = str(path)[:LONGEST_NAME]
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{where}: not a file; give a CSV of measurements")
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read: {why}; give a CSV of measurements") from None
    if len(data) > LARGEST_FILE_BYTES:
        raise InputError(f"{where}: larger than {LARGEST_FILE_BYTES:,} bytes; split it")
    return parse_table(data, where=where)


def parse_table(data: bytes, *, where: str) -> Table:
    """The table in a file's bytes; see `read_table`.

    >>> text = b"id,model,seq_len,micro_batch,n_gpus,gpu,peak_mem_gib\\na,llama-2-7b,2048,two,1,a100-80,20"
    >>> parse_table(text, where="t.csv").problems
    ("t.csv:2: micro_batch: not a number, got 'two'; allowed is a whole number above 0",)
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8; save the table as UTF-8 CSV") from None
    header, rows = _records(text, where)
    wrong = _header_problems(header)
    parsed = [] if len(header) == 1 else [_row(header, cells, line, where) for line, cells in rows]
    problems = tuple(p for _, problems in parsed for p in problems)
    if wrong:
        first = f"{where}: {'; '.join(wrong)}; see docs/reference/measurements.md for all columns"
        raise InputError(listed((first, *problems)))
    if not rows:
        raise InputError(f"{where}: no rows; give a header and a row per measurement")
    known = {*WHOLE, *AMOUNTS, *TEXTS, ""}
    good = tuple(row for row, problems in parsed if row is not None and not problems)
    return Table(where=where, rows=good, problems=problems, unread=tuple(n for n in header if n not in known))


class _Lines:
    """The lines of a text without comments: those that begin a record with #; a quoted cell may hold any line."""

    def __init__(self, text: str) -> None:
        self.begun = 0  # number of the line that the present record began with
        self.fresh = True  # no line of the next record was read yet
        self._lines = enumerate(io.StringIO(text, newline=None), 1)

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            if self.fresh and line.startswith("#"):
                continue
            if self.fresh:
                self.begun, self.fresh = number, False
            yield line


Record = tuple[int, Sequence[str]]


def _records(text: str, where: str) -> tuple[list[str], list[Record]]:
    """The header's names, and the cells of each row with the line it begins at."""
    lines = _Lines(text)
    rows: list[Record] = []
    try:
        for cells in csv.reader(iter(lines), strict=True):
            if any(cell.strip() for cell in cells):
                rows.append((lines.begun, cells))
            lines.fresh = True
            if len(rows) > MOST_ROWS:
                raise InputError(f"{where}: more than {MOST_ROWS:,} rows; split it")
    except csv.Error as error:
        raise InputError(f"{where}:{lines.begun}: not CSV: {error}; save it as comma-separated values") from None
    if not rows:
        raise InputError(f"{where}: empty; give a header and a row per measurement")
    header = [name.strip() for name in rows[0][1]]
    if len(header) > MOST_COLUMNS:
        raise InputError(f"{where}: {len(header):,} columns; allowed are {MOST_COLUMNS:,}; leave out what is not read")
    return header, rows[1:]


def _header_problems(header: Sequence[str]) -> list[str]:
    required = REQUIRED_OF_RUNS if set(header) >= RUN_COLUMNS else REQUIRED
    missing = [name for name in required if name not in header]
    twice = sorted(name for name, times in Counter(header).items() if times > 1 and name)
    problems = []
    if len(header) == 1 and missing:
        problems.append(f"one column, {header[0][:40]!r}: separate the columns by commas")
    if missing:
        problems.append(f"columns missing: {', '.join(missing)}{_near(missing, header)}")
    if twice:
        problems.append(f"columns twice: {', '.join(name[:40] for name in twice)}")
    if not any(name in header for name in MEASURED):
        problems.append(f"nothing measured: none of {', '.join(MEASURED)}")
    return problems


def _near(missing: Sequence[str], header: Sequence[str]) -> str:
    """The first column that is missing under another name."""
    return next((near for name in missing if (near := did_you_mean(name, [h[:40] for h in header]))), "")


NOT_STATED = frozenset(
    {"unknown", "n/a", "na", "nan", "none", "null", "-", "?", "not stated", "varies", "various", "auto"}
)


def _row(header: Sequence[str], cells: Sequence[str], line: int, where: str) -> tuple[Measurement | None, list[str]]:
    place = f"{where}:{line}"
    if len(cells) != len(header):
        return None, [f"{place}: {len(cells)} cells, the header has {len(header)}; quote cells that hold commas"]
    row = {name: _plain(cell) for name, cell in zip(header, cells, strict=True) if cell}
    row = {name: cell for name, cell in row.items() if name in TEXTS or cell.lower() not in NOT_STATED}
    problems: list[str] = []
    numbers = {name: _number(name, row[name], place, problems) for name in (*WHOLE, *AMOUNTS) if row.get(name)}
    found = Measurement(
        line=line,
        texts={name: row[name] for name in TEXTS if row.get(name)},
        numbers={name: value for name, value in numbers.items() if value is not None},
        whole_run=set(header) >= RUN_COLUMNS,
    )
    problems += [f"{place}: {problem}" for problem in _contradictions(found)]
    if "id" in header and not found.identity:
        problems.append(f"{place}: id: blank; give every row a name")
    return found, problems


def _plain(cell: str) -> str:
    """A cell that can be printed: one line, not without end, no control characters."""
    text = cell[: 2 * LONGEST_CELL].strip()[:LONGEST_CELL]
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _number(name: str, cell: str, place: str, problems: list[str]) -> float | None:
    kind = "a whole number above 0" if name in WHOLE else "a number above 0"
    least = 0 if name == "zero_stage" else 1 if name in WHOLE else 1e-9
    match = NUMBER.fullmatch(cell)
    if match is None:
        problems.append(f"{place}: {name}: not a number, got {cell[:40]!r}; allowed is {kind}")
        return None
    word = match[2].lower().strip(" (),.;").split(" ")[0]
    if word in SCALES - OWN_UNITS.get(name, frozenset()):
        problems.append(f"{place}: {name}: another unit, got {cell[:40]!r}; allowed is {kind} in the column's own unit")
        return None
    value = float(match[1].replace(",", "").replace("_", ""))
    if not least <= value <= LARGEST or (name in WHOLE and value != int(value)):
        problems.append(f"{place}: {name}: out of range, got {cell[:40]!r}; allowed is {kind}")
        return None
    return value


def _contradictions(row: Measurement) -> list[str]:
    """What a row says about itself that cannot be."""
    found = []
    unit = row.text("mem_unit").lower().split()[:1]
    if "peak_mem" in row.numbers and "peak_mem_gib" not in row.numbers and (not unit or unit[0] not in UNITS):
        shown = row.text("mem_unit")[:40] or "blank"
        found.append(
            f"mem_unit: not a unit, got {shown!r}; allowed are GiB, GB, MiB, MB, bytes, or the column peak_mem_gib"
        )
    if row.whole("zero_stage") > 3:
        found.append(f"zero_stage: got {row.whole('zero_stage')}; allowed are 0 to 3")
    return found
