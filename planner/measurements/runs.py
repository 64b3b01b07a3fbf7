"""Whole training runs: a source prints tokens and GPU-hours, and leaves open how the run was laid out.

What a row leaves open is filled in by one rule:

    framework      as stated; under tensor or pipeline parallelism Megatron, its stages interleaved, one layer a chunk
    sharding       as its `parallelism` says, ZeRO-1 under tensor or pipeline parallelism, else ZeRO-3 (FSDP); where it
                   says nothing the quickest of ZeRO-1 and ZeRO-3 on 1 to 8 tensor-parallel ranks that has room
    GPUs           as stated, else what its degrees multiply to, else the fewest nodes of 8, doubled, that hold it
    checkpointing  none where a micro-batch of one sequence has room, else every layer
    micro-batch    the largest power of two with room, up to a rank's share of the batch; in a pipeline 1
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from .machine import GPUS_PER_NODE
from .table import Measurement, Unsupported

TOLERANCE_PERCENT = 15.0  # what a run's GPU-hours are held to
MOST_DOUBLINGS = 12  # of nodes, and of the micro-batch

HasRoom = Callable[[Measurement], bool]
Speed = Callable[[Measurement], float]
STAGES, TENSOR_RANKS = (1, 3), (1, 2, 4, 8)  # tried where nothing is stated


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """How a whole run was taken to be laid out."""

    row: Measurement  # with everything filled in
    assumed: str  # what the rule filled in, in words
    caveat: str  # what else the measured hours contain


# Beginnings of words of a source by which its hours are not those of a training run on these tokens.
OTHER_WORK = (
    ("rlhf", "reinforcement learning: tokens are generated as well"),
    ("distill", "distilled: another model's passes belong to it"),
    ("non-standard architecture", "an architecture that is not modelled"),
    ("tpu", "a TPU"),
    ("suspect", "its figures are called suspect"),
)
CUT_BY = "Megatron-LM"  # whose framework is not named, and which cuts layers or matrices
MORE_HOURS = ("downtime", "overheads", "post-training", "instruct tuning")


def _said(row: Measurement) -> str:
    """Everything a source says in words."""
    return " ".join(row.text(name) for name in ("gpu", "parallelism", "inferred_fields", "notes")).lower()


def as_run(row: Measurement, has_room: HasRoom, speed: Speed) -> RunRow:
    """A row with what it leaves open filled in.

    Args:
        row: of a table of whole runs.
        has_room: whether the memory of such a row is enough, by the expected value.
        speed: tokens per second and GPU of such a row; 0 where it cannot be priced.

    Raises:
        Unsupported: the row is no training run of its tokens, or says too little.
    """
    said = _said(row)
    other = next((why for word, why in OTHER_WORK if re.search(rf"\b{word}", said)), "")
    if other:
        raise Unsupported(other)
    if row.gpu_hours and not row.number("tokens"):
        raise Unsupported("tokens are not stated")
    stated = as_stated(row)
    is_open = not row.text("parallelism") and not row.text("act_ckpt").isdecimal()
    found = _quickest(stated, has_room, speed) if is_open else _with_batch(stated, has_room)
    contained = [word for word in MORE_HOURS if word in said]
    caveat = f"its hours contain {', '.join(contained)}" if contained and row.gpu_hours else ""
    return RunRow(row=found, assumed=_assumed(row, found), caveat=caveat)


DEGREE = re.compile(r"\b(TP|VPP|PP|CP|EP|DP|MBS|GA|GBS) ?=? ?([0-9]{1,6})\b", re.IGNORECASE)
COLUMNS = {"mbs": "micro_batch", "ga": "grad_accum", "gbs": "global_batch"}
STAGE = re.compile(r"zero[ -]?([0-3])\b", re.IGNORECASE)
NOTED_BATCH = re.compile(r"(?:^|[;,] )batch ([0-9]{1,6})\b")
NOTED_OFFLOAD = re.compile(r"\boffload ([a-z+ ]{1,40})")


def as_stated(row: Measurement) -> Measurement:
    """Columns for what the row says in words: degrees, sharding, batch, method.

    >>> said = Measurement(line=2, texts={"parallelism": "TP4 PP4 DP32, MBS1 GA16 GBS512"}, numbers={}, whole_run=True)
    >>> found = as_stated(said)
    >>> [found.whole(name) for name in ("tp", "pp", "dp", "micro_batch", "grad_accum", "n_gpus", "zero_stage")]
    [4, 4, 32, 1, 16, 512, 1]
    """
    text, notes = row.text("parallelism"), row.text("notes").lower()
    numbers = {COLUMNS.get(name.lower(), name.lower()): float(size) for name, size in DEGREE.findall(text)}
    noted = NOTED_BATCH.search(notes)
    if noted:
        numbers["micro_batch"] = float(noted[1])
    cut = _product(numbers, ("tp", "pp", "cp"))
    if "dp" in numbers:
        numbers["n_gpus"] = cut * numbers["dp"]
    if numbers.get("pp", 1) > 1 and not row.text("framework"):
        numbers["vpp"] = float(max(1, -(-row.whole("layers") // int(numbers["pp"]))))
    numbers["zero_stage"] = float(_stage(text, cut > 1, numbers.get("pp", 1) > 1))
    numbers |= _batch(row)
    texts = {"sharding": text, **_words(row, notes, cut=cut > 1)}
    return replace(row, texts=texts | dict(row.texts), numbers=numbers | dict(row.numbers))


def _product(numbers: Mapping[str, float], names: tuple[str, ...]) -> float:
    product = 1.0
    for name in names:
        product *= numbers.get(name, 1.0)
    return product


def _stage(text: str, cut: bool, pipeline: bool) -> int:
    """ZeRO's stage; in a pipeline FSDP keeps gathered weights: every micro-batch would gather them again.

    Source:
        torchtitan distributed/fsdp.py, reshard_after_forward "default"; Llama 3 (arXiv:2407.21783) §3.3.2.
    """
    stated, lowered = STAGE.search(text), text.lower()
    if stated:
        return int(stated[1])
    if "fsdp" in lowered or "hsdp" in lowered:
        return 2 if pipeline else 3
    if re.search(r"\bddp\b", lowered):
        return 0
    return 1 if cut or "distributed optimizer" in lowered else 3


def _batch(row: Measurement) -> dict[str, float]:
    tokens, seq_len = row.number("global_batch_tokens"), row.whole("seq_len")
    return {"global_batch": max(1.0, round(tokens / seq_len))} if tokens and seq_len else {}


def _words(row: Measurement, notes: str, *, cut: bool) -> dict[str, str]:
    """Method, offload and compilation, which such tables have no column for; and by whom a model is cut."""
    moved, framework = NOTED_OFFLOAD.search(notes), row.text("framework")
    found = {
        "task": "qlora" if "qlora" in row.text("precision").lower() else "",
        "offload": moved[1] if moved else "",
        "compile": "yes" if "torch.compile" in framework else "",
        "framework": "" if framework or not cut else CUT_BY,
    }
    return {name: word for name, word in found.items() if word}


def _quickest(row: Measurement, has_room: HasRoom, speed: Speed) -> Measurement:
    """The quickest layout of those that have room; where none has, the sparest of them."""
    layouts = [_with_batch(layout, has_room) for layout in _layouts(row)]
    fitting = [layout for layout in layouts if has_room(layout)]
    return max(fitting, key=speed) if fitting else layouts[-1]


def _layouts(row: Measurement) -> Iterator[Measurement]:
    """ZeRO stages and tensor-parallel ranks that divide heads and GPUs."""
    heads, gpus = row.whole("heads"), row.whole("n_gpus")
    for stage, ranks in product(STAGES, TENSOR_RANKS):
        if ranks == 1 or (heads and heads % ranks == 0 and (not gpus or gpus % ranks == 0)):
            words = {} if ranks == 1 or row.text("framework") else {"framework": CUT_BY}
            numbers = {"zero_stage": float(stage), "tp": float(ranks)}
            yield replace(row, texts={**row.texts, **words}, numbers={**row.numbers, **numbers})


def _with_batch(row: Measurement, has_room: HasRoom) -> Measurement:
    """The first of the rule's layouts that has room; the sparest where none has."""
    sparest = row
    for gpus in _gpus(row):
        for checkpointing in (row.text("act_ckpt"),) if row.text("act_ckpt") else ("none", "full"):
            sparest = _laid_out(row, gpus, checkpointing, 1)
            if has_room(sparest):
                return _largest(row, gpus, checkpointing, has_room)
    return sparest


def _gpus(row: Measurement) -> Iterator[int]:
    """As stated, or nodes in doubling numbers."""
    if row.whole("n_gpus"):
        yield row.whole("n_gpus")
    else:
        yield from (GPUS_PER_NODE * 2**n for n in range(MOST_DOUBLINGS))


def _largest(row: Measurement, gpus: int, checkpointing: str, has_room: HasRoom) -> Measurement:
    """The largest micro-batch that has room, of those that are powers of two and no more than a rank's share."""
    best = _laid_out(row, gpus, checkpointing, 1)
    if row.whole("micro_batch") or row.whole("pp", 1) > 1:
        return best
    share = round(row.whole("global_batch") / best.replicas) if row.whole("global_batch") else 2**MOST_DOUBLINGS
    for micro_batch in (2**n for n in range(1, MOST_DOUBLINGS + 1)):
        larger = _laid_out(row, gpus, checkpointing, micro_batch)
        if micro_batch > share or not has_room(larger):
            break
        best = larger
    return best


def _laid_out(row: Measurement, gpus: int, checkpointing: str, micro_batch: int) -> Measurement:
    texts = {**row.texts, "act_ckpt": checkpointing}
    return replace(row, texts=texts, numbers={"micro_batch": micro_batch, **row.numbers, "n_gpus": gpus})


def _assumed(stated: Measurement, found: Measurement) -> str:
    """What the rule added to what the row says.

    >>> bare = Measurement(line=2, texts={}, numbers={"seq_len": 2048}, whole_run=True)
    >>> as_run(
    ...     replace(bare, numbers={"seq_len": 2048, "tokens": 1e12, "gpu_hours": 1e6}), lambda _: True, lambda _: 1.0
    ... ).assumed
    '8 GPUs, ZeRO-1, micro-batch 4,096, no checkpointing'
    """
    said = as_stated(stated)
    layers = {"none": "no checkpointing", "full": "checkpointing"}
    parts = (
        found.text("framework") if not stated.text("framework") else "",
        f"{found.whole('n_gpus'):,} GPUs" if not said.whole("n_gpus") else "",
        f"ZeRO-{found.whole('zero_stage')}" if not stated.text("parallelism") else "",
        f"tensor {found.whole('tp')}" if found.whole("tp", 1) > said.whole("tp", 1) else "",
        f"micro-batch {found.whole('micro_batch'):,}" if not said.whole("micro_batch") else "",
        layers[found.text("act_ckpt")] if not stated.text("act_ckpt") else "",
    )
    return ", ".join(part for part in parts if part)
