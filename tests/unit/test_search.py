"""planner/search.py: which columns there are, and why others are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trainplan.api import estimate
from trainplan.planner.choose import best, closest
from trainplan.planner.errors import InputError
from trainplan.planner.hardware import Offer
from trainplan.planner.memory import fixed_device_bytes
from trainplan.planner.program import Limits
from trainplan.planner.search import Demand, Space, explore
from trainplan.planner.units import MIB
from trainplan.planner.workload import Method, Precision, RunOptions, Workload
from trainplan.strategies.space import Choices, families

from ..tiny import llama, machines

FULL = families(Choices(methods=(Method.FULL,)), llama())


def space_of(*offers: Offer, batch: int = 8, demand: Demand | None = None) -> Space:
    """Full fine-tuning of the tiny model."""
    workload = Workload(model=llama(), tokens=10**8, seq_len=256, global_batch=batch)
    return explore(workload, offers, FULL, demand or Demand(max_gpus=8))


def gpus_seen(space: Space) -> set[int]:
    """World sizes of the columns."""
    return {c.gpus for c in space.columns}


def test_the_batch_divides() -> None:
    """12 sequences on nodes of 2: 1, 2 or 3 nodes, not 4."""
    space = space_of(machines(gpus=2), batch=12)
    assert gpus_seen(space) <= {2, 4, 6}
    assert any("not divisible" in reason for reason in space.dropped)


@pytest.mark.parametrize(
    ("demand", "worlds"), [(Demand(gpus=4), {4}), (Demand(nodes=3, max_gpus=8), {6}), (Demand(gpus=5), set())]
)
def test_a_fixed_count_is_kept(demand: Demand, worlds: set[int]) -> None:
    """Exactly so many GPUs or nodes, or nothing."""
    assert gpus_seen(space_of(machines(gpus=2), batch=24, demand=demand)) == worlds


def test_micro_batches_divide_each_ranks_share() -> None:
    """share 12 of a batch of 24 on 2 GPUs: powers of two that divide it, and accumulation makes up the rest."""
    space = space_of(machines(gpus=2), batch=24, demand=Demand(gpus=2))
    for column in space.columns:
        at = space.points[column.key].setting
        assert at.micro_batch in (1, 2, 4)
        assert at.micro_batch * at.gradient_accumulation_steps * at.world_size == 24


def test_an_unknown_network_joins_no_nodes() -> None:
    """One node is planned, two are not, and the reason names the flag."""
    offer = machines(gpus=2)
    alone = replace(offer, node=replace(offer.node, internode_bytes_per_s=None))
    space = space_of(alone)
    assert gpus_seen(space) == {2}
    assert any("--internode-gbps" in reason for reason in space.dropped)


def test_a_gpu_without_the_precision_is_dropped() -> None:
    """No bf16 units, no bf16 plan."""
    offer = machines("v100-32")
    space = space_of(offer, demand=Demand(precision=Precision.BF16, max_gpus=8))
    assert space.columns == []
    assert space.dropped


def test_unknown_host_memory_takes_no_states() -> None:
    """Every column that would put states on the host is dropped, with the reason."""
    space = space_of(machines(host_gib=None))
    assert space.columns
    for column in space.columns:
        facts = space.points[column.key].family.at(1, 1).facts
        assert not {"offload_optimizer", "offload_parameters"} & set(facts)


def test_nothing_fits_a_gpu_that_is_too_small() -> None:
    """The closest point and what it is short of, in GiB."""
    offer = machines(gpus=1)
    chip = replace(offer.node.gpu, memory_bytes=fixed_device_bytes(1, upper=True) + 4 * MIB)
    space = space_of(replace(offer, node=replace(offer.node, gpu=chip)), demand=Demand(max_gpus=1))
    limits = Limits(max_gpus=1)
    assert best(space, limits) is None
    found = closest(space, limits, (Method.FULL,))
    assert found is not None
    candidate, short = found
    assert not candidate.fits
    assert short.constraint.startswith("gpu_")
    assert 0 < short.short < 1


def test_the_answer_is_exact() -> None:
    """What the program returns is the candidate of its own point: same layers, same bill."""
    found = best(space_of(machines()), Limits(max_gpus=8))
    assert found is not None
    candidate, choice = found
    assert candidate.fits
    assert candidate.layers == choice.layers
    assert candidate.cost.usd == pytest.approx(choice.certificate.value, rel=1e-6)


def test_a_cluster_that_fails_all_the_time_is_no_plan() -> None:
    """A failure every second or two of the cluster: no column, and the reason."""
    run = RunOptions(mtbf_gpu_hours=0.001)
    workload = Workload(model=llama(), tokens=10**8, seq_len=256, global_batch=8, run=run)
    space = explore(workload, [machines()], FULL, Demand(max_gpus=8))
    assert space.columns == space.infeasible == []
    assert any("failures or interruptions" in reason for reason in space.dropped)


def test_an_estimate_that_never_ends_is_refused() -> None:
    """One line: how often it fails, how long a restart takes."""
    with pytest.raises(InputError, match=r"the run never ends: 8 GPUs fail every 4\.5 s"):
        estimate(llama(), gpus="8xh100", mtbf_gpu_hours=0.01, seq_len=256)
    short = estimate(llama(), gpus="8xh100", tokens=2048, seq_len=256, global_batch=8)
    assert short.candidate.cost.run.goodput < 0.02  # start-up is no failure
