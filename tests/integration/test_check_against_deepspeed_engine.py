"""Configurations that people write, not plans: what `check` says they hold is what real engines of two ranks hold.

Sizes are DeepSpeed's own or odd ones, overlap_comm is on and off, tensors are larger than buckets: all that a
plan would choose otherwise. Lines and moments are those of `trainplan verify`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
from trainplan.api.asking import request
from trainplan.api.checking import bench_of
from trainplan.planner.candidate import Candidate
from trainplan.planner.ledger import BACKWARDS, Device, Item, Phase
from trainplan.planner.verify.compare import Report, Row, state_rows
from trainplan.planner.verify.job import job_of
from trainplan.planner.verify.launch import run_jobs
from trainplan.planner.verify.lines import ignored_items

from . import test_against_deepspeed_engine as engines
from .engine import TIMEOUT_S, environment

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
def reports() -> Sequence[Report]:
    """All engines, in one pair of processes; they are given the files, not what `check` made of them."""
    jobs = []
    for name, config in CONFIGS.items():
        job = job_of(candidate_of(name), steps=engines.STEPS)
        jobs.append({**job, "plan": {**job["plan"], "ds_config": config}})
    found = run_jobs(jobs, processes=RANKS, environment=environment(RANKS), timeout_s=TIMEOUT_S)
    return [Report.of(ranks) for ranks in found]


def report_of(name: str) -> Report:
    """One engine's ranks."""
    return reports()[list(CONFIGS).index(name)]


@cache
def candidate_of(name: str) -> Candidate:
    """What `check` makes of a file."""
    wanted = request(
        gpus=f"{RANKS}xa100-80", price=1.0, gpus_per_node=RANKS, host_memory_gib=64, seq_len=engines.SEQUENCE_TOKENS
    )
    model = engines.tiny_model(engines.Case(ranks=RANKS, stage=3))
    return bench_of(model, wanted, None, "none").judge(CONFIGS[name]).candidate


@pytest.mark.parametrize("name", CONFIGS)
def test_every_line_is_what_the_engine_holds(name: str) -> None:
    """Item by item and moment by moment, to the byte; stage 1's gradients as the buckets go are looked at below."""
    c = candidate_of(name)
    assert (c.zero_stage, c.setting.gradient_accumulation_steps) == (
        CONFIGS[name]["zero_optimization"]["stage"],
        CONFIGS[name]["gradient_accumulation_steps"],
    )
    rows = list(state_rows(c, report_of(name), engines.STEPS, ignored_items(c)))
    off = [row.text() for row in rows if not row.exact and not (c.zero_stage == 1 and is_of_buckets(row))]
    assert rows
    assert not off, "\n".join(off)


def is_of_buckets(row: Row) -> bool:
    """Whether it is what is held of gradients as the last bucket is given back."""
    return row.moment.endswith("reduced") and row.section == Item.GRADIENTS.section


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("1")])
def test_stage_1_holds_gradients_of_large_tensors(name: str) -> None:
    """As the last bucket is given back, what is held is no more than the line says, and more than the rank's own."""
    config = CONFIGS[name]
    ledger, report = candidate_of(name).ledger, report_of(name)
    entries = [e for e in ledger.entries if e.item in (Item.GRADIENTS, Item.ACCUMULATED) and e.device is Device.GPU]
    at_the_end = sum(e.upper_bytes for e in entries if Phase.BACKWARD_END in e.phases)
    held = report.most(f"{engines.STEPS - 1}/{config['gradient_accumulation_steps'] - 1}/backward/reduced")
    own = sum(e.bytes for e in entries if Phase.STEP in e.phases)
    assert own < held["gradients"] <= max(at_the_end, own + at_the_end)
    assert held["gradients"] <= own + 2 * ledger.trainable.total


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("3")])
def test_gathered_parameters_are_bounded(name: str) -> None:
    """Given sizes bound what stage 3 holds whole; hpZ's second copy is a line of its own."""
    config = CONFIGS[name]
    ledger, report = candidate_of(name).ledger, report_of(name)
    last = f"{engines.STEPS - 1}/{config['gradient_accumulation_steps'] - 1}/forward"
    gathered = [e for e in ledger.entries if e.item is Item.GATHERED and {Phase.FORWARD, *BACKWARDS} & set(e.phases)]
    assert 0 < report.most(last)["gathered"] <= sum(e.upper_bytes for e in gathered)


def test_hpz_holds_a_second_copy() -> None:
    """At the step, against the same engine without it: 2 B x every tensor cut over two ranks, to the byte."""
    with_it, without = report_of("3-hpz"), report_of("3-all-reduce")
    moment = f"{engines.STEPS - 1}/0/step"
    more = max(p[moment] for p in with_it.peaks) - max(p[moment] for p in without.peaks)
    (line,) = [e for e in candidate_of("3-hpz").ledger.entries if "zero_hpz_partition_size" in e.why]
    assert more == line.bytes
