"""Configurations that people write, not plans: what `check` says they hold is what real engines of two ranks hold.

Sizes are DeepSpeed's own or odd ones, overlap_comm is on and off, tensors are larger than buckets: all that a
plan would choose otherwise. They are compared as `trainplan verify` compares (planner/verify/compare.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from trainplan.api.asking import request
from trainplan.api.checking import bench_of
from trainplan.planner.candidate import Candidate
from trainplan.planner.errors import EngineFailed
from trainplan.planner.ledger import BACKWARDS, Device, Item, Phase
from trainplan.planner.verify.compare import Report, Row, gathered_row, state_rows, strangers, unexplained_rows
from trainplan.planner.verify.job import job_of
from trainplan.planner.verify.launch import run_jobs
from trainplan.planner.verify.lines import SUMS, ignored_items, last_micro_step, moments

from .engine import TIMEOUT_S, environment
from .test_against_deepspeed_engine import SEQUENCE_TOKENS, STEPS, Case, off, tiny_model

pytestmark = pytest.mark.deepspeed

RANKS = 2
ADAM = {"type": "AdamW", "params": {"lr": 1e-3}}  # DeepSpeedCPUAdam where the optimizer is offloaded
TORCH = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
CPU: dict[str, Any] = {"offload_optimizer": {"device": "cpu"}}
SIZES: dict[str, Any] = {
    "reduce_bucket_size": 2000, "stage3_prefetch_bucket_size": 500, "stage3_param_persistence_threshold": 40,
    "sub_group_size": 3000, "stage3_max_live_parameters": 5000, "stage3_max_reuse_distance": 1000,
}  # fmt: skip


def configured(zero: Mapping[str, Any], *, micro_steps: int = 1, **more: Any) -> dict[str, Any]:
    """A file with one zero_optimization section."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": micro_steps,
        "bf16": {"enabled": True},
        "optimizer": ADAM if "offload_optimizer" in zero else TORCH,
        "zero_optimization": dict(zero),
        **more,
    }


FLAT = {"reduce_bucket_size": 2000}
CONFIGS: Mapping[str, dict[str, Any]] = {
    "1-waiting": configured({"stage": 1, **FLAT}),
    "1-waiting-2": configured({"stage": 1, **FLAT}, micro_steps=2),
    "1-large-tensors": configured({"stage": 1, **FLAT, "overlap_comm": True}),
    "2-waiting": configured({"stage": 2, **FLAT}),
    "2-waiting-2": configured({"stage": 2, **FLAT}, micro_steps=2),
    "1-offload-overlap": configured({"stage": 1, **FLAT, "overlap_comm": True, **CPU}),
    "1-offload-overlap-2": configured({"stage": 1, **FLAT, "overlap_comm": True, **CPU}, micro_steps=2),
    "2-offload-overlap-2": configured({"stage": 2, **FLAT, "overlap_comm": True, **CPU}, micro_steps=2),
    "2-offload-not-pinned": configured(
        {"stage": 2, **FLAT, "offload_optimizer": {"device": "cpu", "pin_memory": False}}
    ),
    "3": configured({"stage": 3, **SIZES}, micro_steps=2),
    "3-all-reduce": configured({"stage": 3, **SIZES, "reduce_scatter": False, "overlap_comm": False}),
    "3-hpz": configured({"stage": 3, **SIZES, "zero_hpz_partition_size": 2}),
    "3-share": configured({"stage": 3, **SIZES, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}),
    "3-offload-fp32-sums": configured(
        {"stage": 3, **SIZES, **CPU}, micro_steps=2, data_types={"grad_accum_dtype": "fp32"}
    ),
}


@cache
def candidate(name: str) -> Candidate:
    """What `check` makes of a file."""
    wanted = request(
        gpus=f"{RANKS}xa100-80", price=1.0, gpus_per_node=RANKS, host_memory_gib=64, seq_len=SEQUENCE_TOKENS
    )
    return bench_of(tiny_model(Case(ranks=RANKS, stage=3)), wanted, None, "none").judge(CONFIGS[name]).candidate


def engine_job(name: str) -> dict[str, Any]:
    """The job of one engine: the file as it was written, in the place of what its candidate would emit."""
    job = job_of(candidate(name), steps=STEPS)
    job["plan"]["ds_config"] = CONFIGS[name]
    return job


@cache
def reports() -> Mapping[str, Sequence[Mapping[str, Any]]] | EngineFailed:
    """All engines, one after another in one pair of processes; a failure is kept, not repeated by every test."""
    jobs = [engine_job(name) for name in CONFIGS]
    try:
        found = run_jobs(jobs, processes=RANKS, environment=environment(RANKS), timeout_s=TIMEOUT_S)
    except EngineFailed as error:
        return error
    return dict(zip(CONFIGS, found, strict=True))


def report_of(name: str) -> Report:
    """One engine's ranks.

    Raises:
        AssertionError: the engine failed.
        EngineFailed: all of them did.
    """
    every = reports()
    if isinstance(every, EngineFailed):
        raise every
    for rank in every[name]:
        assert "error" not in rank, f"{name}: {rank['error']}"
    return Report.of(every[name])


def bounded_below(c: Candidate, row: Row) -> bool:
    """Whether a row is stage 1's gradients as the buckets go, which have a test of their own."""
    return c.zero_stage == 1 and row.moment.endswith("reduced") and row.section in {item.section for item in SUMS}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_engine_is_built_as_the_file_says(name: str) -> None:
    """Ranks, micro-steps and stage of the candidate are the file's; at stage 3 the model is cut as it is built."""
    c, config = candidate(name), CONFIGS[name]
    stage = config["zero_optimization"]["stage"]
    assert (c.setting.world_size, c.zero_stage) == (RANKS, stage)
    assert c.setting.gradient_accumulation_steps == config["gradient_accumulation_steps"]
    assert engine_job(name)["plan"]["training"]["zero_init"] is (stage == 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_line_is_what_the_engine_holds(name: str) -> None:
    """Item by item and moment by moment, to the byte; stage 1's gradients as the buckets go are looked at below."""
    c = candidate(name)
    rows = [row for row in state_rows(c, report_of(name), STEPS, ignored_items(c)) if not bounded_below(c, row)]
    assert {row.moment for row in rows} == {moment.name for moment in moments(c, STEPS)}
    assert all(row.exact for row in rows), off(rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_belongs_to_a_line(name: str) -> None:
    """Nothing else is alive but the tokens, rotary tables and single numbers; activations during forward aside."""
    c, report = candidate(name), report_of(name)
    assert not off(unexplained_rows(c, report, STEPS)), [
        strangers(rank[moment.name]) for rank in report.unexplained for moment in moments(c, STEPS)
    ]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("1")])
def test_stage_1_holds_gradients_of_large_tensors(name: str) -> None:
    """As the last bucket is given back, what is held is no more than the line says, and more than the rank's own."""
    c, report = candidate(name), report_of(name)
    entries = [e for e in c.ledger.entries if e.item in SUMS and e.device is Device.GPU]
    at_the_end = sum(e.upper_bytes for e in entries if Phase.BACKWARD_END in e.phases)
    held = report.most(f"{last_micro_step(c, STEPS)}/backward/reduced")["gradients"]
    own = sum(e.bytes for e in entries if Phase.STEP in e.phases)
    assert own < held <= max(at_the_end, own + at_the_end)
    assert held <= own + 2 * c.ledger.trainable.total


@pytest.mark.parametrize("name", CONFIGS)
def test_gathered_parameters_are_bounded(name: str) -> None:
    """Given sizes bound what stage 3 holds whole; the other stages gather none."""
    assert not off([gathered_row(candidate(name), report_of(name), STEPS)])


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("3")])
def test_stage_3_gathers_parameters(name: str) -> None:
    """There is something to bound: in forward, within all lines of forward and backward."""
    c = candidate(name)
    lines = [e for e in c.ledger.entries if e.item is Item.GATHERED and {Phase.FORWARD, *BACKWARDS} & set(e.phases)]
    gathered = report_of(name).most(f"{last_micro_step(c, STEPS)}/forward")["gathered"]
    assert 0 < gathered <= sum(e.upper_bytes for e in lines)


def test_hpz_holds_a_second_copy() -> None:
    """At the step, against the same engine without it: 2 B x every tensor cut over two ranks, to the byte."""
    c = candidate("3-hpz")
    moment = f"{last_micro_step(c, STEPS)}/step"
    more = report_of("3-hpz").peak(moment) - report_of("3-all-reduce").peak(moment)
    (line,) = [e for e in c.ledger.entries if "zero_hpz_partition_size" in e.why]
    assert more == line.bytes
