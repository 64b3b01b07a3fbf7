"""tests/evidence/baselines.py: 6ND and the roofline, by hand."""

from __future__ import annotations

import pytest
from trainplan.planner.measurements import machine
from trainplan.planner.models import load_model
from trainplan.planner.parallel import WHOLE, places
from trainplan.planner.work import Resource, When, Work

from ..evidence.baselines import constant_mfu, roofline, six_nd, slowest_s
from ..measured_rows import row_of

PARAMETERS = 6_738_415_616  # Llama-2-7B
PEAK = 312e12


def work(resource: Resource, amount: float, *, once: bool = False, bits: int = 0) -> Work:
    """One amount."""
    return Work(name="", resource=resource, amount=amount, when=When.FORWARD, once=once, bits=bits)


def seconds(*amounts: Work, gpu: str = "a100-80", data: int = 8, times: float = 1.0) -> float:
    """Of a step on nodes of 8."""
    row = row_of(gpu=gpu, n_gpus=str(data))
    card = machine.gpu_of(row)
    assert card is not None
    return slowest_s(amounts, machine.node_of(row, card), places(WHOLE, data, 8), times)


def test_six_nd() -> None:
    """u F / 6 N."""
    assert load_model("llama-2-7b").parameter_count == PARAMETERS
    assert six_nd(row_of(), 0.5) == pytest.approx(0.5 * PEAK / (6 * PARAMETERS))


def test_the_constant_is_the_median_of_what_rows_reach() -> None:
    """Of 30, 40 and 60 % of the peak, 40 %."""
    rows = [(row_of(), share * PEAK / (6 * PARAMETERS)) for share in (0.3, 0.6, 0.4)]
    assert constant_mfu(rows) == pytest.approx(0.4)


def test_the_slowest_unit_decides() -> None:
    """FLOPs over 312e12 a second against bytes over 2.039e12, in every micro-step."""
    flops, traffic = work(Resource.MATMUL, 312e12), work(Resource.MEMORY, 2.039e12 * 3)
    assert seconds(flops) == pytest.approx(1)
    assert seconds(flops, traffic) == pytest.approx(3)
    assert seconds(flops, traffic, times=4) == pytest.approx(12)
    assert seconds(flops, work(Resource.MEMORY, 2.039e12 * 3, once=True), times=4) == pytest.approx(4)


def test_units_add_up_their_own_work() -> None:
    """Multiplications and attention share the tensor cores; launches cost nothing."""
    parts = (work(Resource.MATMUL, 312e12), work(Resource.ATTENTION, 312e12), work(Resource.LAUNCH, 1e9))
    assert seconds(*parts) == pytest.approx(2)


def test_links() -> None:
    """7/8 of a gathered buffer passes a rank's NVLink at 300e9, twice that of an all-reduce; 15/16 its NIC at 25e9."""
    gathered, reduced = work(Resource.ALL_GATHER, 300e9), work(Resource.ALL_REDUCE, 300e9)
    assert seconds(gathered) == pytest.approx(7 / 8)
    assert seconds(reduced) == pytest.approx(2 * 7 / 8)
    assert seconds(gathered, data=16) == pytest.approx(15 / 16 * 300e9 / 25e9)


def test_low_precision_has_its_own_peak() -> None:
    """8 bits at 1979e12 on H100; A100 has no such units."""
    eight = work(Resource.MATMUL, 1979e12, bits=8)
    assert seconds(eight, gpu="h100") == pytest.approx(1, rel=0.001)
    assert seconds(eight) == pytest.approx(1979 / 312)


def test_roofline_of_a_row() -> None:
    """6 FLOPs of every multiplied weight (all but the embedding's) and a causal attention of 7 L h s, at the peak."""
    flops = 6 * (PARAMETERS - 32_000 * 4096) + 7 * 32 * 4096 * 512
    found = roofline(row_of(seq_len="512", micro_batch="8", act_ckpt="none"))
    assert found == pytest.approx(PEAK / flops, rel=0.01)
