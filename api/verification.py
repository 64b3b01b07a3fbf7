"""A plan on the machine at hand: fewer ranks, fewer layers, real engines, and every line compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..planner.candidate import Candidate
from ..planner.documents import adapters_row, memory_document
from ..planner.emit.deepspeed import ds_config
from ..planner.emit.training import training_document
from ..planner.errors import InputError
from ..planner.ledger import MARGINS, Certainty
from ..planner.model import Model
from ..planner.planfile import model_of, read_plan
from ..planner.trace import Subject, trace
from ..planner.verify.compare import Row, bounded
from ..planner.verify.job import job_of
from ..planner.verify.launch import environment, run_jobs
from ..planner.verify.machine import Machine, this_machine
from ..planner.verify.outcome import Ran, Verification, measured_rows
from ..planner.verify.shrink import with_layers
from ..strategies.traced import Traced
from .asking import as_model
from .narrowing import as_planned, narrowed, rebuilt, shrunk

FEWEST_STEPS, MOST_STEPS = 3, 100  # stage 3 prefetches from the third step on
MOST_PROCESSES = 64
ACTIVATIONS = ("activations, forward", "activations, backward")  # rows of a trace that the ledger promises


def verified(
    plan: str | Mapping[str, Any],
    *,
    steps: int,
    processes: int | None,
    layers: int | None,
    device: str,
    model: str | Model | None,
    progress: Callable[[str], None],
) -> Verification:
    """`trainplan.api.verify`."""
    document = dict(plan) if isinstance(plan, Mapping) else read_plan(plan)
    _check(steps, processes, device)
    planned = as_planned(document)
    machine = this_machine(device)
    check_runnable(planned, machine)
    whole = as_model(model) if model is not None else model_of(document)
    ranks = processes or min(planned.gpus, machine.most_ranks)
    if machine.cards and ranks > len(machine.cards):
        raise InputError(f"--processes: got {ranks}; this machine has {len(machine.cards)} GPUs; give at most as many")
    part = shrunk(document, whole, machine, ranks, layers)
    chosen = narrowed(document, part.model, machine, ranks)
    progress(f"running {part.text or 'the whole model'} on {ranks} ranks, {machine.text}")
    reports = ran(chosen, machine, steps)
    rows, notes = list(measured_rows(chosen, reports, steps, machine)), list(left_out(planned, machine))
    if not machine.cards:
        progress("tracing activations")
        rows, notes = rows + activation_rows(document, whole, chosen), notes + untraced(chosen)
    return Verification(
        planned=planned,
        candidate=chosen,
        machine=machine,
        shrunk=part,
        ran=Ran.of(reports),
        rows=tuple(rows),
        disagreements=tuple(disagreements(document, planned)),
        notes=tuple(notes),
    )


def _check(steps: int, processes: int | None, device: str) -> None:
    if not FEWEST_STEPS <= steps <= MOST_STEPS:
        raise InputError(f"--steps: got {steps}; allowed are {FEWEST_STEPS} to {MOST_STEPS}, as ZeRO-3 settles by then")
    if processes is not None and not 1 <= processes <= MOST_PROCESSES:
        raise InputError(f"--processes: got {processes}; allowed are 1 to {MOST_PROCESSES}")
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device: got {device!r:.40}; allowed are auto, cpu and cuda")


def check_runnable(planned: Candidate, machine: Machine) -> None:
    """Whether this device has what the stack needs.

    Raises:
        InputError: it has not.
    """
    optimizer = planned.ledger.optimizer
    zero = planned.ledger.deepspeed.get("zero_optimization", {})
    if "nvme" in (zero.get(part, {}).get("device") for part in ("offload_optimizer", "offload_param")):
        raise InputError("verify: the plan offloads to NVMe, whose path is the plan's; no such path is written to here")
    if machine.cards:
        return
    if optimizer.deepspeed is None:
        raise InputError(f"verify: {optimizer.name} runs on GPUs alone (bitsandbytes); verify this plan on a GPU")
    if optimizer.name == "lion" and "offload_optimizer" not in zero:
        raise InputError("verify: DeepSpeed's Lion without offload is a CUDA kernel; verify this plan on a GPU")


def ran(c: Candidate, machine: Machine, steps: int) -> list[dict[str, Any]]:
    """The reports of the ranks."""
    job = job_of(c, steps=steps)
    if not machine.cards:
        job["plan"]["training"] |= {"liger": False, "compile": False}
    (reports,) = run_jobs([job], processes=c.gpus, environment=environment(machine.device, c.gpus))
    return reports


def activation_rows(document: Mapping[str, Any], whole: Model, chosen: Candidate) -> list[Row]:
    """Activations of the plan's own widths, tokens and micro-batch, traced on tensors without storage."""
    model = with_layers(whole, chosen.setting.model.layers)
    if model is None or untraced(chosen):
        return []
    c = rebuilt(document, model, ranks=chosen.gpus, per_node=chosen.gpus, micro_steps=1)
    computation = replace(c.ledger.computation, liger=False, compiled=False)
    subject = Subject(
        model=model, seq_len=c.setting.seq_len, micro_batch=c.setting.micro_batch, computation=computation,
        optimizer_step=False,
    )  # fmt: skip
    found = Traced(subject=subject, trace=trace(subject))
    margin = MARGINS[Certainty.TRACED]
    return [
        bounded(
            row.name, "A1 to A7", "traced", row.ledger_bytes, row.traced_bytes,
            least=round(row.ledger_bytes * (1 - margin)), most=round(row.ledger_bytes * (1 + margin)),
        )
        for row in found.rows
        if row.name in ACTIVATIONS
    ]  # fmt: skip


def untraced(c: Candidate) -> list[str]:
    """Why activations are not traced; nothing where they are."""
    computation = c.ledger.computation
    reasons = {
        "checkpoints on the host: a trace has none": computation.checkpoints_on_host,
        "padded batches: a trace has none": computation.padded,
    }
    return [f"activations: {reason}" for reason, there in reasons.items() if there]


def left_out(planned: Candidate, machine: Machine) -> Iterator[str]:
    """What this device cannot show, and why."""
    computation = planned.ledger.computation
    if machine.cards:
        yield "activations line by line: the three memories and the peaks of each phase hold them"
        if machine.gpu is None:
            yield "step time: the catalog has no such GPU"
        return
    yield "activations of the engine: other kernels run on a CPU; they are traced on tensors without storage instead"
    yield "gradients in flight and temporaries of the backward pass (G7, O4, G4): alive with activations"
    yield "allocated, reserved and device memory: there is no GPU; what pinning rounds up to: nothing is pinned"
    yield "step time: the plan promises nothing of this CPU"
    if computation.liger or computation.compiled:
        yield "fused and compiled kernels: they need a GPU; memory is planned without them"


def disagreements(document: Mapping[str, Any], planned: Candidate) -> Iterator[str]:
    """Where the file says something else than its own decision, assessed today."""
    for section, fresh in (
        ("ds_config", ds_config(planned.ledger, planned.setting)),
        ("training", training_document(planned)),
        ("adapters", adapters_row(planned) or {}),
    ):
        if document.get(section) is not None:  # of an older plan
            yield from _other_keys(section, document[section], fresh)
    for store, row in memory_document(planned).items():
        yield from _other_lines(store, document["memory"][store]["entries"], row["entries"])
        machine = () if store == "gpu" else OF_THE_OFFER
        stated = {key: value for key, value in document["memory"][store].items() if key not in machine}
        fresh = {key: value for key, value in row.items() if key not in machine}
        yield from _other_keys(f"memory of the {store}", stated, fresh)


# Entries are compared line by line. The rest does not follow from the decision alone: hub id, tokens, the priced host.
ELSEWHERE = ("entries", "model", "steps", "save_every_steps")
OF_THE_OFFER = ("capacity_bytes", "checked", "fits")


def _other_keys(section: str, stated: Mapping[str, Any], fresh: Mapping[str, Any]) -> Iterator[str]:
    """Keys of one section whose values differ; versions are what the plan was made with."""
    known, found = dict(flat(stated)), dict(flat(fresh))
    for key in sorted({*known, *found}):
        if key not in ELSEWHERE and not key.startswith("versions.") and known.get(key) != found.get(key):
            yield f"{section}: {key}: {known.get(key)!r:.60} in the file, the decision gives {found.get(key)!r:.60}"


def flat(keys: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested objects, joined by dots.

    >>> list(flat({"bf16": {"enabled": True}, "steps_per_print": 10}))
    [('bf16.enabled', True), ('steps_per_print', 10)]
    """
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def _other_lines(store: str, stated: list[Any], fresh: list[Any]) -> Iterator[str]:
    """Lines of one device whose bytes or phases differ."""
    known, found = (_by_line(entries) for entries in (stated, fresh))
    for line in sorted({*known, *found}):
        if known.get(line) != found.get(line):
            sizes = (sum(size for size, *_ in entries.get(line, ())) for entries in (known, found))
            in_file, today = sizes
            yield f"memory of the {store}: {line}: {in_file:,} bytes in the file, the decision gives {today:,}"


def _by_line(entries: list[Any]) -> dict[str, list[tuple[int, int, tuple[str, ...]]]]:
    lines: dict[str, list[tuple[int, int, tuple[str, ...]]]] = {}
    for entry in entries:
        amounts = (entry["bytes"], entry["upper_bytes"], tuple(sorted(entry["phases"])))
        lines.setdefault(f"{entry['item']} ({entry['section']})", []).append(amounts)
    return {line: sorted(amounts) for line, amounts in lines.items()}
