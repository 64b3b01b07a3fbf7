"""planner/renewal.py, upkeep.py and run.py: where the hours of a whole run go."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from trainplan.planner.checkpoint import Checkpoint
from trainplan.planner.efficiency import value
from trainplan.planner.hardware import Tier
from trainplan.planner.renewal import best_interval_h, stretched_h
from trainplan.planner.run import LEAST_PROGRESS, Run, ends, whole_run
from trainplan.planner.run_lines import lines, run_assumptions
from trainplan.planner.upkeep import between_failures_h, upkeep, write_h
from trainplan.planner.workload import RunOptions, Workload

from ..tiny import llama, machines

WORKLOAD = Workload(model=llama(), tokens=1000 * 16 * 2048, seq_len=2048, global_batch=16)  # 1000 steps
NODE = machines(gpus=8).node
SAVED = Checkpoint(weights_bytes=13 * 10**9, module_bytes=0, states_bytes=12 * 10**9, sharded=True)


def run_of(
    options: RunOptions | None = None,
    *,
    nodes: int = 1,
    tier: Tier = Tier.ON_DEMAND,
    step_s: float = 36.0,
    saved: Checkpoint = SAVED,
) -> Run:
    """A thousand steps."""
    return whole_run(replace(WORKLOAD, run=options or RunOptions()), NODE, nodes, tier, saved, step_s)


def test_daly_by_hand() -> None:
    """C 0.5 h, M 24 h: Young sqrt(2 x 0.5 x 24) - 0.5 = 4.40 h; Daly 4.90 (1 + 0.034 + 0.0012) - 0.5 = 4.57 h."""
    c, m = 0.5, 24.0
    root = math.sqrt(c / (2 * m))
    series = math.sqrt(2 * c * m) * (1 + root / 3 + root**2 / 9) - c
    assert series == pytest.approx(4.571, abs=0.001)
    assert best_interval_h(c, m) == pytest.approx(series, rel=1e-3)


@given(c=st.floats(1e-5, 10), m=st.floats(1e-2, 1e5))
def test_daly_agrees_with_his_series(c: float, m: float) -> None:
    """Within 1 % of the higher-order estimate where he gives it, C well below M."""
    assume(c < m / 10)
    root = math.sqrt(c / (2 * m))
    assert best_interval_h(c, m) == pytest.approx(math.sqrt(2 * c * m) * (1 + root / 3 + root**2 / 9) - c, rel=0.01)


@given(c=st.floats(1e-5, 10), m=st.floats(0.1, 1e5), r=st.floats(0, 1), other=st.floats(0.01, 100))
def test_the_interval_is_the_minimiser(c: float, m: float, r: float, other: float) -> None:
    """No other interval ends sooner."""
    assume(c < 20 * m)
    tau = best_interval_h(c, m)
    least = stretched_h(1.0, tau, c, r, m)
    assert least <= stretched_h(1.0, tau * other, c, r, m) * (1 + 1e-9)
    assert least == pytest.approx(math.exp(r / m) / (1 - tau / m), rel=1e-6)  # what is left at the minimum


def test_failures_add_up() -> None:
    """8 GPUs: 50,700 / 8 h; 16 spot nodes stay up for 4.3 / 16^0.3 = 1.87 h, as measured 1.7 to 2.0."""
    assert between_failures_h(8, 1, Tier.ON_DEMAND) == pytest.approx(50700 / 8)
    assert between_failures_h(8, 1, Tier.ON_DEMAND, 800.0) == pytest.approx(100.0)
    alone = between_failures_h(16, 16, Tier.SPOT, 1e9)
    assert alone == pytest.approx(4.3 / 16**0.3, rel=1e-3)
    assert 1.7 < alone < 2.0
    both = between_failures_h(16, 1, Tier.SPOT, 16 * 4.3)
    assert both == pytest.approx(4.3 / 2)


def test_rank_0_writes_while_the_others_wait() -> None:
    """13 GB by one writer at 1.0 GB/s (one node's storage): 13 s, 12 GB by all ranks: 12 s; two nodes: 10 and 6 s."""
    assert write_h(SAVED, 1) * 3600 == pytest.approx(25)
    assert write_h(SAVED, 2) * 3600 == pytest.approx(16)  # 13 / 1.3 + 12 / 2
    assert write_h(SAVED, 1, storage_bytes_per_s=100e9) * 3600 == pytest.approx(11)  # 10.12, in whole seconds
    slow_links = write_h(SAVED, 1, node_link_bytes_per_s=1e9, storage_bytes_per_s=100e9)
    assert slow_links * 3600 == pytest.approx(math.ceil(10 + 12 / value("host_link", "share")))


def test_a_run_by_hand() -> None:
    """10 h of steps, 1 % stalls, no evaluation, a checkpoint of 25 s every hour, no failures to speak of."""
    options = RunOptions(eval_every=1000, eval_tokens=1, checkpoint_every_s=3600, mtbf_gpu_hours=1e12)
    run = run_of(options)
    start_s = 120 + 2 * WORKLOAD.model.parameter_count / 1e9
    assert run.steps_h == pytest.approx(10)
    assert run.stalls_h == pytest.approx(0.1)
    assert run.evaluation_h == 0
    assert run.start_up_h == pytest.approx(start_s / 3600)
    assert run.checkpoints_h == pytest.approx(10.1 * 25 / 3600)
    assert run.hours == pytest.approx(10.1 + (start_s + 10.1 * 25) / 3600, rel=1e-6)
    assert run.failures == pytest.approx(0, abs=1e-8)


def test_failures_by_hand() -> None:
    """M 10 h, C 25 s, R 240 + start + 25 s, tau 1 h: hours = 10 e^(R/10) (e^((1 + C)/10) - 1) x 10.1."""
    options = RunOptions(eval_every=1000, eval_tokens=1, checkpoint_every_s=3600, mtbf_gpu_hours=80)
    run = run_of(options)
    c = 25 / 3600
    r = 240 / 3600 + run.start_up_h + c
    inside = 10 * math.exp(r / 10) * math.expm1((1 + c) / 10) * 10.1
    assert run.hours == pytest.approx(run.start_up_h + inside)
    assert run.failures == pytest.approx(inside / 10)
    assert run.restarts_h == pytest.approx(run.failures * r, rel=0.01)  # hardly ever interrupted themselves
    assert run.lost_h == pytest.approx(run.failures * (1 + c) / 2, rel=0.05)  # half an interval each


def test_evaluation_is_forward_passes() -> None:
    """One second of evaluation per step of 36 s; the assumed share is gone."""
    told = replace(WORKLOAD, run=RunOptions(eval_every=10, eval_tokens=10**6))
    run = whole_run(told, NODE, 1, Tier.ON_DEMAND, SAVED, 36.0, 1.0)
    assert run.evaluation_h == pytest.approx(1000 / 3600)
    assert run.stalls_h == pytest.approx(0.01 * 1000 * 37 / 3600)


def test_the_interval_stays_between_a_step_and_the_run() -> None:
    """A day asked for, a run of ten hours: one checkpoint at its end. A second asked for: one a step."""
    rare, often = (run_of(RunOptions(checkpoint_every_s=s)) for s in (86400, 1))
    work_h = 10 * (1 + value("stalls", "share") + value("evaluation", "share"))
    assert rare.interval_h == pytest.approx(work_h)
    assert rare.checkpoints_h == pytest.approx(25 / 3600)
    assert often.interval_h == pytest.approx(work_h / 1000)


NODES = st.integers(1, 2048)
TIERS = st.sampled_from((Tier.ON_DEMAND, Tier.SPOT))


@given(nodes=NODES, more=st.integers(0, 2048), tier=TIERS, step_s=st.floats(0.01, 1000))
def test_goodput_falls_with_gpus(nodes: int, more: int, tier: Tier, step_s: float) -> None:
    """More GPUs fail more often; a checkpoint that rank 0 writes takes as long."""
    alone = replace(SAVED, states_bytes=0)
    options = RunOptions(storage_bytes_per_s=1e13)
    few, many = (run_of(options, nodes=n, tier=tier, step_s=step_s, saved=alone) for n in (nodes, nodes + more))
    reading_h = many.start_up_h - few.start_up_h  # of nodes x model from one storage
    assert many.hours - reading_h >= few.hours * (1 - 1e-9)


@given(nodes=NODES, mtbf=st.floats(1e4, 1e7), less=st.floats(1, 10), step_s=st.floats(0.01, 1000))
def test_goodput_falls_with_the_failure_rate(nodes: int, mtbf: float, less: float, step_s: float) -> None:
    """Shorter times between failures never help."""
    sound, frail = (run_of(RunOptions(mtbf_gpu_hours=m), nodes=nodes, step_s=step_s) for m in (mtbf, mtbf / less))
    assert frail.goodput <= sound.goodput * (1 + 1e-9)


@given(nodes=NODES, tier=TIERS, step_s=st.floats(0.01, 1000))
def test_lines_add_up_and_none_is_negative(nodes: int, tier: Tier, step_s: float) -> None:
    """Hours are the sum of the lines, and no less than the steps."""
    run = run_of(nodes=nodes, tier=tier, step_s=step_s)
    hours = [h for _, h, _, _ in lines(run, RunOptions(), tier)]
    assert min(hours) >= 0
    assert sum(hours) == pytest.approx(run.hours)
    assert run.hours > run.steps_h
    assert 0 < run.goodput < 1


def test_a_run_without_checkpoints_is_a_floor() -> None:
    """The search's bound: nothing written, nothing read back."""
    bare, kept = (upkeep(WORKLOAD, NODE, 4, Tier.SPOT, *saved) for saved in ((), (SAVED,)))
    assert (bare.write_h, bare.interval_h) == (0, 0)
    assert bare.restart_h < kept.restart_h
    assert bare.start_up_h == kept.start_up_h


def test_the_lean_path_is_remembered() -> None:
    """The search asks thousands of times with few answers."""
    assert upkeep(WORKLOAD, NODE, 4, Tier.SPOT, SAVED) is upkeep(WORKLOAD, NODE, 4, Tier.SPOT, SAVED)


@given(mtbf=st.floats(1e-3, 1e3), step_s=st.floats(0.01, 1000))
def test_a_run_ends_or_not_either_way(mtbf: float, step_s: float) -> None:
    """The search's short way says what the lines say."""
    told = replace(WORKLOAD, run=RunOptions(mtbf_gpu_hours=mtbf))
    kept = upkeep(told, NODE, 1, Tier.ON_DEMAND, SAVED)
    run = run_of(told.run, step_s=step_s)
    share = (run.hours - run.start_up_h - run.lost_h - run.restarts_h) / (run.hours - run.start_up_h)
    assume(abs(share - LEAST_PROGRESS) > 1e-6)
    assert ends(kept, 1000, step_s) == run.ends


def test_assumptions_say_whose_they_are() -> None:
    """Given ones are the user's."""
    told = RunOptions(mtbf_gpu_hours=1000, storage_bytes_per_s=5e9, pue=1.1, checkpoint_every_s=7200)
    said = {name: (text, origin) for name, text, origin in run_assumptions(told, Tier.SPOT)}
    assert said["failures"] == ("every 1,000 GPU-hours, and on spot 4.3 h of one node", "you")
    assert said["shared storage"] == ("5 GB/s for all nodes", "you")
    assert said["checkpoints"] == ("every 2.0 h", "you")
    assert said["PUE"] == ("1.1", "you")
    assert said["data stalls"][1] == said["evaluation"][1] == "assumed"
