"""Laws of calibration: what is planted is found, a single row moves little, bounds never fall below what was seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import trainplan
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.api.calibrating import case_from
from trainplan.planner.calibrate.cases import Case, Measured, Quantity
from trainplan.planner.calibrate.outcome import Outcome, outcome_of
from trainplan.planner.calibrate.parameters import LIVE, OVERHEADS, calibration_of, constant, parameters
from trainplan.planner.calibrate.profile import text_of
from trainplan.planner.calibration import AS_SHIPPED, RATES, Calibration, Range
from trainplan.planner.candidate import Candidate
from trainplan.planner.columns import box_of, corners_of, gpu_rows
from trainplan.planner.errors import InputError
from trainplan.planner.family import Family
from trainplan.planner.hardware import calibrated
from trainplan.planner.ledger import ALWAYS, Device
from trainplan.planner.overheads import overhead
from trainplan.planner.units import GIB

# Configurations whose steps rest on different resources: short and long sequences, one GPU and many, three stages.
JOBS = (
    ("8xa100-80", {"zero": 3, "checkpointing": "full", "micro_batch": 4}),
    ("8xa100-80", {"zero": 3, "checkpointing": "full", "micro_batch": 1}),
    ("8xa100-80", {"zero": 2, "checkpointing": "full", "micro_batch": 2, "seq_len": 2048, "method": "lora"}),
    ("16xa100-80", {"zero": 3, "checkpointing": "none", "micro_batch": 1, "seq_len": 1024}),
    ("32xa100-80", {"zero": 3, "checkpointing": "full", "micro_batch": 1, "seq_len": 512}),
    ("8xa100-80", {"zero": 3, "checkpointing": "full", "micro_batch": 1, "seq_len": 8192}),
    ("16xa100-80", {"zero": 1, "checkpointing": "full", "micro_batch": 2, "method": "qlora"}),
    ("8xa100-80", {"zero": 3, "checkpointing": "full", "micro_batch": 2, "offload_optimizer": "cpu"}),
)


@cache
def candidate(job: int) -> Candidate:
    """One of the configurations, as shipped."""
    gpus, options = JOBS[job]
    machines = {"price_usd_per_gpu_hour": 1, "host_memory_gib": 2000, "internode_gbps": 1600, "fabric": "infiniband"}
    asked = {"zero": 3, "micro_batch": 1, **options}
    return trainplan.estimate("llama-3-8b", gpus=gpus, **machines, **asked).candidate  # type: ignore[arg-type]


def case_of(job: int, measured: Measured) -> Case:
    """A row of one of the configurations."""
    return case_from(candidate(job), measured, f"row-{job}", "test")


def figures_at(job: int, truth: Calibration) -> Measured:
    """What a run on a platform with these figures would measure."""
    case = case_of(job, Measured())
    memory, step = case.memory(truth), case.step(truth)
    assert step is not None
    return Measured(
        allocated_bytes=memory.allocated_bytes,
        reserved_bytes=memory.reserved_bytes,
        device_bytes=memory.device_bytes,
        step_s=step.step_s,
    )


def rows(truth: Calibration, jobs: range | tuple[int, ...] = range(len(JOBS))) -> list[Case]:
    """A row of each configuration on a platform."""
    return [case_of(job, figures_at(job, truth)) for job in jobs]


def truth_of(**figures: float) -> Calibration:
    """A platform's figures."""
    return calibration_of({name: Range(x, x, x) for name, x in figures.items()})


def moved(found: Outcome) -> dict[str, float]:
    """Figures by name."""
    return {f.name: f.value.point for f in found.profile.figures}


PLANTED = (
    {"matmul": 0.85, "memory": 0.9, "attention": 0.9},
    {"matmul": 1.1, "memory": 1.15, "attention": 1.2, "inside": 0.8, "between": 0.8},
    {"live": 0.04, "fragmentation": 0.12, "context": 1.0, "collectives": 0.6},
    {"live": -0.03, "matmul": 0.9, "context": 0.4, "fragmentation": 0.03},
)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: ",".join(p))
def test_what_is_planted_is_found_from_many_rows(planted: dict[str, float]) -> None:
    """Eight rows of different shares: every quantity is planned within 2.5 %, and matmul rates are within 4 %."""
    found = outcome_of(rows(truth_of(**planted)))
    assert found.refused == ()
    assert all(abs(j.after) < 0.025 for j in found.judged if j.quantity is not Quantity.FIXED)
    assert all(abs(j.after) < 0.08 for j in found.judged if j.quantity is Quantity.FIXED)
    if "matmul" in planted:
        assert moved(found)["matmul"] == pytest.approx(planted["matmul"], rel=0.04)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: ",".join(p))
def test_what_is_planted_serves_rows_that_were_not_fitted(planted: dict[str, float]) -> None:
    """Six rows fitted: the other two are planned better than as shipped, or as well."""
    truth = truth_of(**planted)
    found = outcome_of(rows(truth, (0, 1, 2, 3, 4, 5)))
    for case in rows(truth, (6, 7)):
        before, after = case.planned(AS_SHIPPED), case.planned(found.profile.calibration)
        for quantity, measured in case.quantities.items():
            assert abs(after[quantity] - measured) <= abs(before[quantity] - measured) + 0.02


def test_one_row_moves_its_step_part_of_the_way() -> None:
    """A step 20 % slower than planned: after one row the plan is slower, by less than 20 %; doubt is left."""
    slow = replace(figures_at(0, AS_SHIPPED), step_s=1.2 * (figures_at(0, AS_SHIPPED).step_s or 0))
    found = outcome_of([case_of(0, slow)])
    (step,) = (j for j in found.judged if j.quantity is Quantity.STEP)
    assert step.before == pytest.approx(1 / 1.2 - 1)
    assert step.before < step.after < -0.02
    assert all(f.doubt_left > 0.3 for f in found.profile.figures if f.name in RATES)


def test_rows_as_planned_leave_every_figure_as_shipped() -> None:
    """Measured as planned: nothing moves."""
    for f in outcome_of(rows(AS_SHIPPED)).profile.figures:
        assert f.value.point == pytest.approx(f.shipped, rel=1e-4, abs=1e-4)


def test_neutral_figures_change_no_number() -> None:
    """Factors of one and the shipped overheads, written out: bytes and seconds are the same to the last digit."""
    shipped = {name: Range(o.low, o.point, o.upper) for name in OVERHEADS for o in [overhead(name)]}
    neutral = calibration_of({name: Range(1.0, 1.0, 1.0) for name in RATES} | shipped)
    for job in range(len(JOBS)):
        case = case_of(job, Measured())
        assert case.memory(neutral) == case.memory(AS_SHIPPED) == candidate(job).gpu
        assert case.step(neutral) == case.step(AS_SHIPPED) == candidate(job).time


@settings(max_examples=25, deadline=None)
@given(
    job=st.integers(0, len(JOBS) - 1),
    live=st.floats(-0.08, 0.08),
    held=st.floats(0.0, 0.2),
    fixed=st.floats(0.2, 1.8),
    pace=st.floats(0.85, 1.2),
)
def test_bounds_hold_what_was_measured(job: int, live: float, held: float, fixed: float, pace: float) -> None:
    """Of any believed row every range's upper end, and the bound that decides what fits, are at least what was seen."""
    planned = figures_at(job, AS_SHIPPED)
    allocated = int(case_of(job, Measured()).memory(truth_of(live=live)).allocated_bytes)
    reserved = int(allocated * (1 + held))
    seen = Measured(
        allocated_bytes=allocated,
        reserved_bytes=reserved,
        device_bytes=reserved + int(fixed * GIB),
        step_s=pace * (planned.step_s or 1),
    )
    found = outcome_of([case_of(job, seen)])
    refused = {r.what for r in found.refused}
    memory = found.cases[0].memory(found.profile.calibration)
    if "allocated" not in refused:
        assert memory.allocated.upper >= allocated
    if not refused:
        capacity = memory.capacity_bytes
        assert memory.reserved.upper >= min(reserved, capacity - int(fixed * GIB)) - 1
        assert memory.device.upper >= min(seen.device_bytes or 0, capacity) - 1
        assert memory.upper_bound_bytes >= allocated + fixed * GIB - 1


@settings(max_examples=15, deadline=None)
@given(fixed=st.floats(0.3, 1.5), more=st.floats(0.05, 0.3))
def test_more_memory_measured_never_lowers_the_bound(fixed: float, more: float) -> None:
    """A row that shows more beside the allocator gives a bound that is no lower."""
    planned = figures_at(0, AS_SHIPPED)

    def bound(gib: float) -> int:
        seen = replace(planned, device_bytes=(planned.reserved_bytes or 0) + int(gib * GIB))
        found = outcome_of([case_of(0, seen)])
        assert found.refused == ()
        return found.cases[0].memory(found.profile.calibration).upper_bound_bytes

    assert bound(fixed + more) >= bound(fixed)


def test_one_row_keeps_the_shipped_margin() -> None:
    """Less context than shipped in one row: the point falls, its upper end by no more; four let it fall further."""
    low = truth_of(context=0.3, collectives=0.2)
    one, four = (outcome_of(rows(low, jobs)).profile for jobs in ((0,), (0, 1, 2, 5)))
    shipped = overhead("context")
    first, last = (next(f.value for f in p.figures if f.name == "context") for p in (one, four))
    assert first.upper - first.point == pytest.approx(shipped.upper - shipped.point)
    assert last.upper - last.point == pytest.approx((shipped.upper - shipped.point) / 2)
    assert last.upper < first.upper < shipped.upper


def test_indirect_rows_lower_no_bound() -> None:
    """Device memory alone, lower than planned: no row measured the context, so that its upper end stays."""
    planned = figures_at(0, AS_SHIPPED)
    seen = Measured(device_bytes=int(0.97 * (planned.device_bytes or 0)))
    profile = outcome_of([case_of(0, seen)]).profile
    memory = case_of(0, seen).memory(profile.calibration)
    assert memory.upper_bound_bytes >= candidate(0).gpu.upper_bound_bytes
    assert all(f.value.upper >= f.shipped for f in profile.figures if f.name in OVERHEADS or f.name == LIVE)


ODD: tuple[tuple[str, Callable[[Measured], Measured], str], ...] = (
    ("3 times as slow", lambda m: replace(m, step_s=3.1 * (m.step_s or 0)), "step time is 3.10x of what is planned"),
    ("quick as no GPU", lambda m: replace(m, step_s=0.3 * (m.step_s or 0)), "step time is 0.30x of what is planned"),
    (
        "another's process",
        lambda m: replace(m, device_bytes=(m.device_bytes or 0) + 9 * GIB),
        "another process on the GPU is likelier",
    ),
    ("other allocator", lambda m: replace(m, reserved_bytes=int(1.6 * (m.allocated_bytes or 0))), "allocator setting"),
)


@pytest.mark.parametrize(("measure", "words"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
def test_an_odd_figure_is_refused(measure: Callable[[Measured], Measured], words: str) -> None:
    """Beyond what the parameters reach: named with the reason, and no figure moves for it."""
    plain = figures_at(0, AS_SHIPPED)
    found = outcome_of([case_of(0, measure(plain)), case_of(1, figures_at(1, AS_SHIPPED))])
    assert any(words in r.reason for r in found.refused)
    assert all(r.label == "row-0" for r in found.refused)
    for f in found.profile.figures:
        assert f.value.point == pytest.approx(f.shipped, rel=0.02, abs=0.02)


def test_a_row_of_another_job_is_refused_whole() -> None:
    """Twice the tensors: its step and overheads are of another job too, and nothing is left to fit."""
    plain = figures_at(0, AS_SHIPPED)
    other = replace(plain, allocated_bytes=2 * (plain.allocated_bytes or 0), reserved_bytes=None, device_bytes=None)
    with pytest.raises(InputError, match=r"nothing is left to fit.*another model, batch"):
        outcome_of([case_of(0, other)])


def test_no_figure_moves_beyond_its_reach() -> None:
    """Many rows at the edge of belief: figures stay within three deviations of the shipped ones."""
    found = outcome_of(rows(truth_of(matmul=0.72, memory=0.72, attention=0.72, launches=0.72)))
    known = {p.name: p for p in parameters()}
    for name, value in moved(found).items():
        least, most = known[name].allowed
        assert least - 1e-9 <= value <= most + 1e-9


def test_the_step_bound_of_belief_is_stated() -> None:
    """The reason names what is explained: a ratio above one and below the odd one."""
    plain = figures_at(0, AS_SHIPPED)
    slow = replace(plain, step_s=3.1 * (plain.step_s or 0))
    (refused,) = outcome_of([case_of(0, slow), case_of(1, figures_at(1, AS_SHIPPED))]).refused
    explained = float(refused.reason.split("x to ")[1].split("x)")[0])
    assert 1.2 < explained < 2.0
    assert math.isclose(constant("reach", "deviations"), 3.0)


def test_a_profile_is_small() -> None:
    """Few figures, whatever the number of rows: never one per row."""
    found = outcome_of(rows(AS_SHIPPED))
    assert len(found.profile.figures) <= len(parameters()) <= 15
    assert len(text_of(found.profile)) < 10_000


def family_of(candidate: Candidate) -> Family:
    """The candidate's stack as a family without choices."""
    from trainplan.api.rebuilding import facts_of
    from trainplan.api.searching import choices_of
    from trainplan.planner.documents import decision
    from trainplan.planner.request import Request
    from trainplan.strategies.space import one_family

    choices = replace(choices_of(Request(), candidate.setting.workload.model), methods=(candidate.method,))
    return one_family(facts_of(decision(candidate), candidate.layers), choices, candidate.setting.workload.model)


@pytest.mark.parametrize("job", [0, 4, 7])
def test_rows_of_the_program_are_those_of_the_ledger(job: int) -> None:
    """Under a profile too: the program's line at a corner is the exact upper bound of the phase."""
    profile = calibration_of({LIVE: Range(0.0, 0.02, 0.05), "context": Range(0.4, 0.5, 0.9)})
    c = candidate(job)
    gpu, setting = calibrated(c.offer.node.gpu, profile), replace(c.setting, live=profile.live)
    family = family_of(c)
    box = box_of(family, setting.model.layers)
    corners = corners_of(family, setting, box)
    lines = {row.name: row for row in gpu_rows(corners, box, setting, gpu)}
    fixed = (0.9 + overhead("collectives").upper) * GIB
    for phase in ALWAYS:
        exact = corners[0].by_phase(Device.GPU, upper=True)[phase] * (1 + overhead("needed").upper) + fixed
        line = lines[f"gpu_{phase.value}"].line
        at = line.at(box.low_layers, box.low_groups)
        assert at * GIB == pytest.approx(exact, rel=1e-6)


def test_a_figure_stands_in_a_profile_only_where_a_row_measures_it() -> None:
    """One node, nothing offloaded: no host link, no drive, no CPU optimizer; every figure names at least one row."""
    found = outcome_of([case_of(2, figures_at(2, AS_SHIPPED))])
    names = {f.name for f in found.profile.figures}
    assert not names & {"host_link", "host_memory", "nvme", "between", "fragmentation_native"}
    assert {"matmul", "memory", "context", "fragmentation", "live"} <= names
    assert all(f.rows == 1 and f.doubt_left < 1 for f in found.profile.figures)
