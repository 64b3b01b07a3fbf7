"""A verification as people read it: the verdict first, then what ran, line by line, and what was not compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap

from ..units import duration
from .table import table
from .words import Document, method_name, strategy

WIDTH = 104  # of a fact's text, so that a line with its name stays within 120
WHEN = {
    "start": "start-up",
    "forward": "forward",
    "reduced": "backward, reduced",
    "backward": "backward",
    "step": "after the step",
    "traced": "traced",
    "peak": "peak",
}
PROVES = (
    "a line of memory is a sum over tensors, the same for every layer, cut over ranks by one rule: "
    "what is equal here is the arithmetic of the whole plan"
)


def verification_text(document: Document, *, every: bool = False) -> str:
    """The report; the verdict is its first line."""
    lines = grouped(document["rows"])
    parts = [
        headline(document, lines),
        facts(document),
        table(
            [cells(row) for row in shown(lines, every)],
            header=("line", "§", "when", "planned", "measured", "difference", ""),
            align="lllrrrl",
        ),
        _listed("The plan file and its own decision differ", document["disagreements"]),
        _listed("Not compared", document["not_compared"]),
        "" if document["status"] == "passed" else advice(document),
    ]
    return "\n\n".join(part for part in parts if part)


def grouped(rows: Sequence[Document]) -> dict[str, list[Document]]:
    """Rows by line, the one that says most of it first."""
    lines: dict[str, list[Document]] = {}
    for row in rows:
        lines.setdefault(row["line"], []).append(row)
    return {name: sorted(found, key=_weight, reverse=True) for name, found in lines.items()}


def _weight(row: Document) -> tuple[bool, int, int]:
    return not row["holds"], abs(row["measured_bytes"] - row["planned_bytes"]), row["planned_bytes"]


def shown(lines: dict[str, list[Document]], every: bool) -> Iterable[Document]:
    """One row a line; all rows of a line that is off, or of every line."""
    for rows in lines.values():
        off = [row for row in rows if not row["holds"]]
        yield from rows if every else off or rows[:1]


def headline(document: Document, lines: dict[str, list[Document]]) -> str:
    """Whether it holds, with numbers."""
    off, count = document["off"], len(lines)
    if off:
        worst = max((row for name in off for row in lines[name]), key=_weight)
        by = f"{worst['line']} {_difference(worst)}, {_when(worst['moment'])}"
        return f"FAIL: {len(off)} of {count} lines off: {', '.join(off)}; the largest is {by}"
    if document["disagreements"]:
        return f"FAIL: all {count} lines hold, but the plan file differs from its own decision"
    equal = [name for name, rows in lines.items() if all(row["planned_bytes"] == row["measured_bytes"] for row in rows)]
    within = "" if len(equal) == count else f", {count - len(equal)} within their bounds"
    compared = f"{len(document['rows'])} comparisons"
    return f"PASS: all {count} lines hold ({compared}): {len(equal)} equal to the byte{within}"


def facts(document: Document) -> str:
    """What was planned, what ran, on what, how fast."""
    planned, ran, versions = document["planned"], document["ran"], document["ran"]["versions"]
    decided = f"{planned['gpus']} x {planned['gpu']}; {strategy(planned)}"
    rows = (
        ("plan", f"{document['model']}, {method_name(planned)}: {decided}"),
        ("ran", f"{_sizes(document)}, {ran['precision']}, random weights, on {ran['machine']}"),
        ("proves", PROVES),
        ("engine", f"DeepSpeed {versions['deepspeed']} {ran['engine']} with {ran['optimizer']}, "
         f"torch {versions['torch']}, transformers {versions['transformers']}"),
        ("step", _step(document["step_s"])),
    )  # fmt: skip
    cells = [(name if i == 0 else "", line) for name, text in rows for i, line in enumerate(wrap(text, WIDTH))]
    return table(cells, align="ll", indent="  ")


def _sizes(document: Document) -> str:
    """What was run of what was planned."""
    planned, ran, model = document["planned"], document["ran"], document["ran"]["model"]
    pairs = (
        (ran["layers"], model["layers"], "layers"),
        (ran["vocabulary"], model["vocabulary"], "words"),
        (ran["hidden"], model["hidden"], "hidden"),
        (ran["processes"], planned["gpus"], "ranks"),
        (ran["gradient_accumulation_steps"], planned["gradient_accumulation_steps"], "micro-steps"),
        (ran["seq_len"], planned["seq_len"], "tokens a sequence"),
    )
    parts = [f"{run:,} of {whole:,} {name}" if run != whole else f"all {run:,} {name}" for run, whole, name in pairs]
    return f"{', '.join(parts)}, micro-batch {ran['micro_batch']}, {ran['checkpointed_layers']} checkpointed"


def _step(step: Document) -> str:
    each = ", ".join(duration(seconds) for seconds in step["each"][:5])
    promised = step["planned"]
    if promised is None:
        return f"{duration(step['measured'])} ({each}), and nothing was promised"
    inside = promised["low"] <= step["measured"] <= promised["upper"]
    band = f"{duration(promised['point'])}, {duration(promised['low'])} to {duration(promised['upper'])}"
    return (
        f"{duration(step['measured'])} ({each}), {'inside' if inside else 'OUTSIDE'} the plan's band of 80 % ({band})"
    )


def cells(row: Document) -> tuple[str, ...]:
    """One row of the table."""
    exact = row["planned_bytes"] == row["measured_bytes"]
    verdict = "OFF" if not row["holds"] else "equal" if exact else _bounds(row)
    amounts = (f"{row[key]:,}" for key in ("planned_bytes", "measured_bytes"))
    return (row["line"], row["section"], _when(row["moment"]), *amounts, _difference(row), verdict)


def _bounds(row: Document) -> str:
    low, planned, high = row["least_bytes"], row["planned_bytes"], row["most_bytes"]
    if low <= 0:
        return "at most that"
    ends = f"{low / planned - 1:+.1%} to {high / planned - 1:+.1%}" if planned else f"up to {high:,}"
    return f"within {ends}"


def _difference(row: Document) -> str:
    difference = row["measured_bytes"] - row["planned_bytes"]
    if not difference:
        return "0"
    share = f" ({difference / row['planned_bytes']:+.2%})" if row["planned_bytes"] else ""
    return f"{difference:+,}{share}"


def _when(moment: str) -> str:
    """The part of the last micro-step."""
    name = moment.rpartition("/")[2]
    return WHEN.get(name, name)


def _listed(title: str, lines: Sequence[str]) -> str:
    return f"{title}\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def advice(document: Document) -> str:
    """What to do about a line that is off."""
    names = [name.partition(" on the ")[0] for name in document["off"]]
    hints = (
        "plan again with this version of trainplan, or undo what was edited in the file"
        * bool(document["disagreements"]),
        f"see the arithmetic of a line: trainplan explain PLAN --line '{names[0]}'" if names else "",
        "compare the versions above with those of the plan's training section; where they agree, please report it with "
        "the output of --json",
    )
    return _listed("What to do", [hint for hint in hints if hint])
