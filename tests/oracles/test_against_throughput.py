"""Predicted against measured tokens/s and GPU-hours: published tables, judged as `trainplan validate` judges them.

Sources (tests/data/throughput.csv, runs.csv; each row names its file and revision): mosaicml/llm-foundry, BigScience's
BLOOM prequel, NVIDIA Megatron-Bridge, NeMo and dgxc-benchmarking, AnswerDotAI/fsdp_qlora, the measured columns of
MooreThreads/SimuMax; whole runs by their model cards, papers and scripts.

Figures of configs/efficiency.toml marked "fitted" were fitted to rows of throughput.csv, so this checks the model's
form, not its predictions elsewhere; none was fitted to runs.csv.
"""

from __future__ import annotations

from functools import cache

import pytest
from trainplan.planner.measurements import shape
from trainplan.planner.measurements.score import Errors
from trainplan.planner.measurements.subject import flops_per_token_of
from trainplan.planner.measurements.table import read_table
from trainplan.planner.units import TERA

from ..evidence import throughput
from ..evidence.published import DATA, source_of

pytestmark = pytest.mark.oracle

LARGEST_MAPE, LARGEST_MEDIAN, LARGEST_BIAS = 10.0, 7.0, 3.0  # percent, dense rows
LARGEST_OF_A_SOURCE = 20.0
LEAST_IN_BAND = 80.0
LARGEST_OF_MIXTURES = 20.0  # 2026-11-25: 17.3 % of 113 rows
# The goal is 15 % for a run. Reached on 2026-11-25, layouts filled in by the rule: 21.0 %, 10 of 20 within 15 %.
LARGEST_OF_RUNS, LEAST_RUNS_WITHIN = 22.0, 10
FOUNDRY = "mosaicml/llm-foundry"
LARGEST_GROUP_BIAS = 8.0
# Models of up to 350M parameters are a matter of launches and of the host: 9.3 % too fast.
BIASED_MODELS = {"MPT-125m"}
# Rows of it that are more than 20 % off, all too fast. In four the micro-batch fills the memory (30B at 8192 tokens on
# 8 GPUs, 70B on 64 A100-40, 760M at 512 tokens), where retries of the allocator are the likely cause; the fifth is 20 %
# below its own neighbours on 16 and on 64 GPUs (1B on 32 A100-40).
EXPECTED_MISSES = {"llmf-140", "llmf-080", "llmf-021", "llmf-179", "llmf-121"}
LARGEST_MISS = 0.20


@cache
def dense() -> Errors:
    """Rows of dense models."""
    return throughput.split(throughput.validation("throughput").time)[0]


@cache
def mixtures() -> Errors:
    """Rows of mixtures of experts."""
    return throughput.split(throughput.validation("throughput").time)[1]


def figure(value: float | None) -> float:
    """A figure of errors that must not be empty."""
    assert value is not None
    return value


def test_dense_rows() -> None:
    """Mean and median absolute error and bias."""
    assert len(dense().scored) >= 570
    assert figure(dense().mape_percent) <= LARGEST_MAPE
    assert figure(dense().median_percent) <= LARGEST_MEDIAN
    assert abs(figure(dense().bias_percent)) <= LARGEST_BIAS


def test_every_source_of_dense_rows() -> None:
    """None is off by more than 20 % on average."""
    found = {name: errors.mape_percent for name, errors in dense().by(source_of).items() if errors.scored}
    assert len(found) == 7
    assert {name: mape for name, mape in found.items() if figure(mape) > LARGEST_OF_A_SOURCE} == {}


def test_the_band_holds_what_it_says() -> None:
    """At least 80 % of the rows lie in the 80 % band, of dense models as of mixtures of experts."""
    assert figure(dense().within_band_percent) >= LEAST_IN_BAND
    assert figure(mixtures().within_band_percent) >= LEAST_IN_BAND


def test_mixtures() -> None:
    """Mean absolute error of mixtures of experts."""
    assert len(mixtures().scored) >= 110
    assert figure(mixtures().mape_percent) <= LARGEST_OF_MIXTURES


@pytest.mark.parametrize("which", [0, 1], ids=["6ND", "roofline"])
def test_baselines_are_worse_on_every_source(which: int) -> None:
    """6ND with its constant fitted to these rows, and the roofline: neither comes near on any source."""
    for errors in (dense(), mixtures()):
        for name, group in errors.by(source_of).items():
            if group.scored:
                assert figure(group.mape_percent) < throughput.baseline_percent(group.scored, which), name


def test_whole_runs_are_no_worse_than_they_were() -> None:
    """GPU-hours under the rule's layouts, above their goal still; a calculator with one MFU is further off."""
    runs = throughput.validation("runs").runs
    assert len(runs.scored) >= 20
    assert figure(runs.mape_percent) <= LARGEST_OF_RUNS
    assert runs.within_tolerance >= LEAST_RUNS_WITHIN
    six_nd = [abs(throughput.six_nd_run_error(s)) for s in runs.scored]
    assert figure(runs.mape_percent) < 100 * sum(six_nd) / len(six_nd)


@cache
def foundry() -> Errors:
    """The rows of the largest table of one source."""
    return Errors(scored=tuple(s for s in dense().scored if s.row.text("source").startswith(FOUNDRY)))


@pytest.mark.parametrize("column", ["gpu", "act_ckpt", "model", "seq_len", "n_gpus"])
def test_no_group_of_the_largest_table_is_biased(column: str) -> None:
    """No GPU, model size, length, cluster size or checkpointing choice is off by more than 8 % as a group, but one."""
    groups = foundry().by(lambda row: row.text(column) or str(row.whole(column)))
    biased = {name for name, group in groups.items() if abs(figure(group.bias_percent)) > LARGEST_GROUP_BIAS}
    assert biased <= BIASED_MODELS


def test_only_the_known_rows_of_the_largest_table_are_far_off() -> None:
    """Every row is within 20 % but the five that are listed with their reason."""
    assert {s.row.identity for s in foundry().scored if abs(s.error) > LARGEST_MISS} == EXPECTED_MISSES


def test_printed_flops_are_ours() -> None:
    """Our FLOPs per token turn llm-foundry's printed tokens/s into its printed TFLOPs, within their rounding."""
    rows = [row for row in read_table(DATA / "throughput.csv").rows if row.text("source").startswith(FOUNDRY)]
    assert len(rows) == 216
    for row in rows:
        flops = flops_per_token_of(row, shape.model_of(row)) * row.number("tokens_per_s_per_gpu") / TERA
        assert flops == pytest.approx(row.number("tflops_per_gpu"), rel=0.01), row.identity


def test_every_row_is_accounted_for() -> None:
    """Every graded row that prints a time is scored, or named with its reason."""
    for name, most in (("throughput", 125), ("runs", 23)):
        found = throughput.validation(name)
        assert found.problems == ()
        for errors in (found.time, found.runs):
            assert all(row.identity and reason for row, reason in errors.unsupported)
            assert len(errors.unsupported) <= most
    timed = throughput.validation("throughput")
    assert len(timed.time.scored) + len(timed.time.unsupported) + len(timed.nothing_measured) == 810
