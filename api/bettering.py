"""The cheapest better configuration on the same GPUs, as changes of the user's own file.

Kept are the global batch, the precision, the optimizer with its hyperparameters, the sums' type, the method and the
checkpointing; free are stage, offload, sizes, and the micro-batch where the file has it as a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..planner.dsconfig.changing import changed, effective
from ..planner.dsconfig.editing import REMOVE, edited, unified
from ..planner.dsconfig.findings import Cost, Finding, Severity
from ..planner.dsconfig.keys import ZERO, keys
from ..planner.dsconfig.meaning import ADAMS
from ..planner.dsconfig.reading import ConfigText
from ..planner.dsconfig.rules import cost, threshold
from ..planner.emit.deepspeed import ds_config, to_json
from ..planner.errors import InputError
from ..planner.transform import Strategy
from ..strategies.accumulation import GradientAccumulation
from ..strategies.given import given_stack
from ..strategies.offload_optimizer import OffloadOptimizer
from ..strategies.offload_parameters import OffloadParameters
from ..strategies.space import SHAPES, stack_of
from ..strategies.zero import Zero
from .judging import Bench, Judged
from .searching import choices_of

SHAPE_RULES = ("higher-stage-than-needed", "optimizer-offload-not-needed", "parameter-offload-not-needed")
MICRO, STEPS, TOTAL = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
LARGEST_MICRO_BATCH = 64
FINALISTS = 3  # shapes that are tried with the file's own sizes too
SIZES = tuple(
    f"{ZERO}.{name}"
    for name in (
        "reduce_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
        "stage3_max_live_parameters", "stage3_max_reuse_distance",
    )
)  # fmt: skip
CPU_ADAM_REFUSES = ("torch_adam", "fused", "foreach")  # arguments of torch's AdamW alone


Option = tuple[Mapping[str, Any], Judged]  # changes of the file, and what it is after them


@dataclass(frozen=True, kw_only=True)
class Better:
    """A better configuration: the changes, what they save, and the text."""

    judged: Judged
    changes: Mapping[str, Any]
    saves: Cost
    text: str
    diff: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "changes": {path: None if value == REMOVE else value for path, value in self.changes.items()},
            "saves": self.saves.to_dict(),
            "fits": self.judged.candidate.fits,
            "diff": self.diff,
            "ds_config": dict(self.judged.document),
        }


def better(config: ConfigText, base: Judged, bench: Bench, findings: Sequence[Finding]) -> Better | None:
    """The cheapest that fits, the user's own shape where it is as good; None where nothing is better, or nothing fits.

    Nothing is claimed where a key is not modelled that may need more.

    Args:
        config: the user's text.
        base: what it is now.
        bench: model, machines, script.
        findings: whose changes mend it.
    """
    mended = dict(_mending(findings))
    own = bench.after(base.document, mended)
    start = own or base
    if any(each.may_add for each in base.meaning.unmodelled):
        return None  # of what nothing can be said
    fitting = _cheapest_first(_options(start, bench, mended, base.document))[:FINALISTS]
    resized = [option for changes, _ in fitting if (option := _own_sizes(changes, bench, base.document))]
    finalists = _cheapest_first([*fitting, *(option for option in resized if _cheaper(option[1], fitting[0][1]))])
    if own and _good(own) and not (finalists and _cheaper(finalists[0][1], own)):
        finalists = [(mended, own)]
    if not finalists:
        return None
    changes, best = finalists[0]
    needed = effective(base.document, changes)
    if not needed:
        return None
    return _written(config, base, best, needed)


def _good(judged: Judged) -> bool:
    return judged.candidate.fits and not judged.refusal


def _cheapest_first(options: Iterable[Option]) -> list[Option]:
    """Those that fit."""
    return sorted((option for option in options if _good(option[1])), key=lambda option: option[1].candidate.cost.usd)


def _own_sizes(changes: Mapping[str, Any], bench: Bench, document: Mapping[str, Any]) -> Option | None:
    """The same shape with the file's own sizes: larger buckets take memory, and may be quicker."""
    kept = {path: value for path, value in changes.items() if path not in SIZES}
    judged = bench.after(document, kept)
    return None if judged is None else (kept, judged)


def _cheaper(one: Judged, other: Judged) -> bool:
    return one.candidate.cost.usd < other.candidate.cost.usd * (1 - threshold("step_share"))


def _mending(findings: Sequence[Finding]) -> Iterator[tuple[str, Any]]:
    """Changes of what will not run, harms or wastes, in that order, but for those that change the shape."""
    for finding in sorted(findings, key=lambda f: -f.severity):  # the worst last: it wins
        if finding.severity is not Severity.NOTE and finding.rule not in SHAPE_RULES:
            yield from finding.changes


def _options(start: Judged, bench: Bench, mended: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Option]:
    """Every shape and micro-batch that the program would look at, as changes of the file, read back and judged."""
    for micro in _micro_batches(start, bench):
        for shape in SHAPES:
            changes = _shaped(start, bench, shape, micro)
            if changes is None:
                continue
            whole = {**mended, **changes}
            judged = bench.after(document, whole)
            if judged is not None:
                yield whole, judged


def _micro_batches(start: Judged, bench: Bench) -> tuple[int, ...]:
    """The file's own; powers of two where it has a number to change."""
    batch = start.resolved.batch
    written = start.document.get(MICRO), start.document.get(STEPS)
    if bench.micro_batch is not None or "auto" in written or (TOTAL not in start.document and None in written):
        return (batch.micro,)
    each = batch.total // batch.gpus
    sizes = {1 << n for n in range(LARGEST_MICRO_BATCH.bit_length()) if each % (1 << n) == 0}
    return tuple(sorted({*sizes, batch.micro}))


def _shaped(
    start: Judged, bench: Bench, shape: tuple[int, str | None, str | None], micro: int
) -> dict[str, Any] | None:
    """What a plan would write for this shape, where the file says something else; None where it is illegal."""
    stage, optimizer_on, parameters_on = shape
    told, batch = start.meaning, start.resolved.batch
    if optimizer_on and told.optimizer not in (*ADAMS, "lion"):
        return None  # the training script's own optimizer, or one without a CPU kernel
    choices = replace(choices_of(bench.wanted, bench.model), methods=(bench.method,))
    stack, _ = given_stack(told, choices, bench.model, bench.method, layers=bench.layers, on_host=bench.on_host)
    kept = [s for s in stack.strategies if s.rank < Zero.rank and not isinstance(s, GradientAccumulation)]
    sums = (GradientAccumulation(told.accumulation or told.precision),) if stage else ()
    offloads: tuple[Strategy, ...] = (
        *((OffloadOptimizer(optimizer_on),) if optimizer_on else ()),
        *((OffloadParameters(parameters_on),) if parameters_on else ()),
    )
    try:
        candidate = bench.on(stack_of(*kept, *sums, Zero(stage), *offloads), stage, batch.total, micro)
    except InputError:
        return None
    emitted = ds_config(candidate.ledger, candidate.setting)
    return {**_zero_changes(emitted, start, stage), **_beside(emitted, start, optimizer_on), **_batch(start, micro)}


def _zero_changes(emitted: Mapping[str, Any], start: Judged, stage: int) -> dict[str, Any]:
    """Keys of zero_optimization: set where another value is in force, taken out where they act no more."""
    changes = {path: value for path, value in _leaves(ZERO, emitted[ZERO]) if _in_force(start, path, stage) != value}
    for name in ("offload_optimizer", "offload_param"):
        if name not in emitted[ZERO]:
            changes[f"{ZERO}.{name}"] = REMOVE
    before = start.meaning.stage
    idle = [
        path
        for path, key in keys().items()
        if path.startswith(f"{ZERO}.") and path in start.resolved.written
        if stage not in key.stages and before in key.stages
    ]
    return {**changes, **dict.fromkeys((path for path in idle if path not in changes), REMOVE)}


def _in_force(start: Judged, path: str, stage: int) -> Any:
    """A value at another stage: overlap_comm's default follows the stage."""
    if path == f"{ZERO}.overlap_comm" and path not in start.resolved.written:
        return stage == 3
    return start.resolved.values[path].value


def _leaves(path: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _leaves(f"{path}.{name}", inner)
        else:
            yield f"{path}.{name}", inner


def _beside(emitted: Mapping[str, Any], start: Judged, optimizer_on: str | None) -> dict[str, Any]:
    """What a shape needs outside of zero_optimization: how NVMe is read, an optimizer that the CPU has."""
    changes: dict[str, Any] = {}
    if "aio" in emitted and "aio" not in start.document:
        changes["aio"] = emitted["aio"]
    if optimizer_on:
        changes |= {f"optimizer.params.{name}": REMOVE for name in CPU_ADAM_REFUSES if name in start.resolved.params}
    return changes


def _batch(start: Judged, micro: int) -> dict[str, Any]:
    batch = start.resolved.batch
    if micro == batch.micro:
        return {}
    steps = batch.total // (micro * batch.gpus)
    changes: dict[str, Any] = {MICRO: micro}
    if STEPS in start.document:
        changes[STEPS] = steps
    return changes


def _written(config: ConfigText, base: Judged, best: Judged, changes: Mapping[str, Any]) -> Better:
    """The user's text with the changes; written anew where its places are not known."""
    whole = changed(base.document, changes)
    text = edited(config.text, changes) if config.placed else to_json(whole)
    name = config.name
    return Better(
        judged=best,
        changes=changes,
        saves=cost(base.candidate, best.candidate),
        text=text,
        diff=unified(config.text, text, name, f"{name} (better)"),
    )
