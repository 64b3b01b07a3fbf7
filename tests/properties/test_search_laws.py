"""planner/search.py and planner/choose.py against brute force, and what a plan may not do when a limit moves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import cycle, pairwise

import pytest
from trainplan.planner.candidate import Candidate, assess
from trainplan.planner.choose import best
from trainplan.planner.family import Family
from trainplan.planner.hardware import Offer, Tier
from trainplan.planner.memory import fixed_device_bytes
from trainplan.planner.model import Model
from trainplan.planner.program import Limits, Objective
from trainplan.planner.search import Demand, Space, explore
from trainplan.planner.transform import Setting
from trainplan.planner.units import GIB, MIB
from trainplan.planner.workload import Method, RunOptions, Workload
from trainplan.strategies.space import Choices, families

from ..tiny import llama, machines

MODEL = llama(hidden=512, layers=3, vocab=8192, intermediate=1376)
BATCH, SEQ_LEN, MAX_GPUS = 4, 512, 4
WORKLOAD = Workload(model=MODEL, tokens=10**9, seq_len=SEQ_LEN, global_batch=BATCH)
PROCESS_GIB = 8  # a process at its upper bound


def small(gpu: str, room_mib: int, *, gpus: int, usd: float, host_mib: int | None) -> Offer:
    """Nodes whose GPUs have so much room beside what every process takes, and so much host RAM a rank likewise."""
    offer = machines(gpu, gpus=gpus, usd=usd, nvme_gib=100)
    chip = replace(offer.node.gpu, memory_bytes=fixed_device_bytes(gpus, upper=True) + room_mib * MIB)
    host = None if host_mib is None else int((PROCESS_GIB * GIB + host_mib * MIB) * gpus / 0.95) + 1
    return replace(
        offer, name=f"{gpu}-{room_mib}-{gpus}-{usd}", node=replace(offer.node, gpu=chip, host_memory_bytes=host)
    )


@cache
def all_families(methods: tuple[Method, ...]) -> tuple[Family, ...]:
    """Everything that is searched for these methods."""
    return families(Choices(methods=methods), MODEL)


def every_candidate(
    offers: Sequence[Offer], members: Sequence[Family], max_gpus: int, workload: Workload = WORKLOAD
) -> Iterator[Candidate]:
    """Each family at each micro-batch, number of nodes, layers checkpointed and sub-groups: folded, priced, billed."""
    for offer in offers:
        for nodes in range(1, max_gpus // offer.node.gpus + 1):
            ranks = nodes * offer.node.gpus
            if BATCH % ranks:
                continue
            for micro_batch in (b for b in (1, 2, 4) if (BATCH // ranks) % b == 0):
                where = Setting(workload=workload, nodes=nodes, ranks_per_node=offer.node.gpus, micro_batch=micro_batch)
                yield from at_each_point(offer, members, where)


def at_each_point(offer: Offer, members: Sequence[Family], where: Setting) -> Iterator[Candidate]:
    """Every k and g of every family."""
    for family in members:
        for k in range(1, MODEL.layers + 1) if family.checkpointing else (0,):
            for g in range(1, family.groups + 1) if family.groups else (0,):
                stack = family.at(k, g)
                if not any(s.accepts(where) for s in stack.strategies):
                    yield assess(offer, stack, where, method=family.method, zero_stage=family.zero_stage)


def measure(candidate: Candidate, objective: Objective) -> float:
    """Dollars, hours or GPUs."""
    return {
        Objective.COST: candidate.cost.usd, Objective.TIME: candidate.cost.hours, Objective.GPUS: float(candidate.gpus)
    }[objective]  # fmt: skip


def within(candidate: Candidate, limits: Limits) -> bool:
    """Memory, money, time."""
    return (
        candidate.fits
        and candidate.cost.usd <= limits.budget_usd
        and candidate.cost.hours * 3600 <= limits.deadline_s
        and candidate.gpus <= limits.max_gpus
    )


MARKETS: dict[str, tuple[Offer, ...]] = {
    "roomy": (
        small("a100-40", 4000, gpus=1, usd=1.0, host_mib=2000),
        small("a100-40", 4000, gpus=2, usd=1.1, host_mib=2000),
    ),
    "checkpoint": (
        small("a100-40", 340, gpus=1, usd=1.0, host_mib=2000),
        small("l40s", 280, gpus=2, usd=0.3, host_mib=2000),
    ),
    "shard": (
        small("a100-40", 240, gpus=2, usd=1.0, host_mib=2000),
        small("a100-40", 290, gpus=4, usd=2.0, host_mib=2000),
    ),
    "share": (small("a100-40", 120, gpus=2, usd=1.0, host_mib=900),),
    "offload": (
        small("a100-40", 200, gpus=1, usd=1.0, host_mib=700),
        small("l40s", 120, gpus=2, usd=0.7, host_mib=300),
    ),
    "little host": (
        small("a100-40", 300, gpus=2, usd=1.0, host_mib=120),
        small("a100-40", 300, gpus=1, usd=1.0, host_mib=260),
    ),
    "unknown host": (
        small("a100-40", 420, gpus=2, usd=1.0, host_mib=None),
        small("a100-40", 260, gpus=1, usd=1.0, host_mib=None),
    ),
}


@cache
def brute(market: str, methods: tuple[Method, ...]) -> tuple[Candidate, ...]:
    """All candidates of a market."""
    return tuple(every_candidate(MARKETS[market], all_families(methods), MAX_GPUS))


@cache
def explored(market: str, methods: tuple[Method, ...]) -> Space:
    """The space of a market."""
    return explore(WORKLOAD, MARKETS[market], all_families(methods), Demand(max_gpus=MAX_GPUS))


def limit_sets(candidates: Sequence[Candidate]) -> Iterator[Limits]:
    """No limits; then budgets and deadlines that cut off part of what fits."""
    yield Limits(max_gpus=MAX_GPUS)
    fitting = [c for c in candidates if c.fits]
    hours, dollars = sorted(c.cost.hours for c in fitting), sorted(c.cost.usd for c in fitting)
    for share in (0.01, 0.2, 0.6) if fitting else ():
        at = int(share * len(fitting))
        yield Limits(max_gpus=MAX_GPUS, deadline_s=hours[at] * 3600 * (1 + 1e-7))
        yield Limits(max_gpus=MAX_GPUS, budget_usd=dollars[at] * (1 + 1e-7))


@pytest.mark.parametrize("methods", [(Method.FULL,), (Method.LORA, Method.QLORA)], ids=["full", "adapters"])
@pytest.mark.parametrize("market", MARKETS)
def test_the_plan_is_brute_force(market: str, methods: tuple[Method, ...]) -> None:
    """No candidate of any family, micro-batch, k, g and node count beats the plan, under any limits."""
    candidates, space = brute(market, methods), explored(market, methods)
    for limits in limit_sets(candidates):
        admitted = [c for c in candidates if within(c, limits)]
        for objective in (Objective.COST, Objective.TIME):
            found = best(space, limits, objective)
            if not admitted:
                assert found is None
                continue
            assert found is not None
            assert within(
                found[0],
                replace(limits, deadline_s=limits.deadline_s * (1 + 1e-9), budget_usd=limits.budget_usd * (1 + 1e-9)),
            )
            least = min(measure(c, objective) for c in admitted)
            assert measure(found[0], objective) == pytest.approx(least, rel=2e-6)


RUNS = {
    "short": replace(WORKLOAD, tokens=10**6),  # ends before the first checkpoint
    "evaluated": replace(WORKLOAD, run=RunOptions(eval_every=3, eval_tokens=10**4)),
    "often written": replace(WORKLOAD, run=RunOptions(checkpoint_every_s=60)),
    "seldom written, frail": replace(WORKLOAD, run=RunOptions(checkpoint_every_s=7200, mtbf_gpu_hours=20)),
    "slow storage, frail": replace(WORKLOAD, run=RunOptions(storage_bytes_per_s=1e8, mtbf_gpu_hours=20)),
}


@pytest.mark.parametrize(("run", "tier"), list(zip(RUNS, cycle((Tier.ON_DEMAND, Tier.SPOT)), strict=False)))
def test_the_plan_is_brute_force_whatever_the_run(run: str, tier: Tier) -> None:
    """Start-up, evaluation, checkpoints and failures are in the program as they are in the bill."""
    workload, members = RUNS[run], all_families((Method.FULL,))
    offers = [replace(offer, tier=tier) for market in ("checkpoint", "offload") for offer in MARKETS[market]]
    candidates = list(every_candidate(offers, members, MAX_GPUS, workload))
    space = explore(workload, offers, members, Demand(max_gpus=MAX_GPUS))
    for limits in limit_sets(candidates):
        least = min(c.cost.usd for c in candidates if within(c, limits))
        found = best(space, limits)
        assert found is not None
        assert found[0].cost.usd == pytest.approx(least, rel=2e-6)


@pytest.mark.parametrize("market", MARKETS)
def test_fewest_gpus(market: str) -> None:
    """The search keeps the smallest machine that fits, dear and slow as it may be."""
    fitting = [c.gpus for c in brute(market, (Method.FULL,)) if c.fits]
    found = best(explored(market, (Method.FULL,)), Limits(max_gpus=MAX_GPUS), Objective.GPUS)
    assert (found[0].gpus if found else None) == min(fitting, default=None)


@pytest.mark.xfail(
    strict=True,
    reason="the line in g of gpu_loss is 0.7 % above the ledger at k = 1, g = 18 of 19 sub-groups, so k = 2 is taken: "
    "0.15 % dearer; the bytes of the last, smaller sub-group are no line in g",
)
def test_one_gpu_and_nearly_all_sub_groups_is_brute_force() -> None:
    """The first offer of the market "offload", alone."""
    offers, members = MARKETS["offload"][:1], all_families((Method.FULL,))
    limits = Limits(max_gpus=MAX_GPUS)
    found = best(explore(WORKLOAD, offers, members, Demand(max_gpus=MAX_GPUS)), limits, Objective.COST)
    assert found is not None
    least = min(c.cost.usd for c in every_candidate(offers, members, MAX_GPUS) if within(c, limits))
    assert found[0].cost.usd == pytest.approx(least, rel=2e-6)


def test_the_markets_bind() -> None:
    """Between them the markets need checkpointing, sharding, a share on the host: the tests above test something."""
    seen: set[object] = set()
    for market in MARKETS:
        found = best(explored(market, (Method.FULL,)), Limits(max_gpus=MAX_GPUS))
        if found:
            seen |= {*found[0].stack.names, found[0].stack.facts.get("partial_share")}
    assert {"checkpointing", "zero-3", "offload-optimizer-cpu", "offload-parameters-cpu", True} <= seen


def cheapest(
    offers: Sequence[Offer], limits: Limits, model_families: Sequence[Family] | None = None
) -> Candidate | None:
    """The best plan of a market."""
    members = model_families or all_families((Method.FULL,))
    found = best(explore(WORKLOAD, offers, members, Demand(max_gpus=limits.max_gpus)), limits)
    return found[0] if found else None


def usd(candidate: Candidate | None) -> float:
    """Infinite where there is no plan."""
    return math.inf if candidate is None else candidate.cost.usd


@pytest.mark.parametrize("market", ["checkpoint", "shard", "offload"])
def test_more_memory_never_costs_more(market: str) -> None:
    """Every GPU 50 MiB larger, several times over."""
    costs = [math.inf]
    for more in range(0, 400, 80):
        offers = [
            replace(o, node=replace(o.node, gpu=replace(o.node.gpu, memory_bytes=o.node.gpu.memory_bytes + more * MIB)))
            for o in MARKETS[market]
        ]
        costs.append(usd(cheapest(offers, Limits(max_gpus=MAX_GPUS))))
    assert all(after <= before * (1 + 2e-6) for before, after in pairwise(costs))


@pytest.mark.parametrize("market", MARKETS)
def test_more_gpus_allowed_never_cost_more(market: str) -> None:
    """A larger --max-gpus only adds candidates."""
    costs = [usd(cheapest(MARKETS[market], Limits(max_gpus=n))) for n in (1, 2, 4)]
    assert all(after <= before * (1 + 2e-6) for before, after in pairwise(costs))


def test_more_time_never_costs_more() -> None:
    """Deadlines from tight to none."""
    space = explored("roomy", (Method.FULL,))
    hours = sorted(c.cost.hours for c in brute("roomy", (Method.FULL,)) if c.fits)
    deadlines = [hours[int(share * (len(hours) - 1))] * 3600 * 1.001 for share in (0, 0.1, 0.5, 1)]
    found = [best(space, Limits(max_gpus=MAX_GPUS, deadline_s=d)) for d in (*deadlines, math.inf)]
    costs = [f[0].cost.usd if f else math.inf for f in found]
    assert all(after <= before * (1 + 2e-6) for before, after in pairwise(costs))
    assert costs[0] > costs[-1]


@pytest.mark.parametrize("market", ["roomy", "checkpoint", "offload"])
def test_doubling_all_prices_changes_the_bill_alone(market: str) -> None:
    """Twice the dollars for the same machine, nodes, stack and batch."""
    doubled = [replace(o, usd_per_hour=2 * o.usd_per_hour) for o in MARKETS[market]]
    before, after = (cheapest(offers, Limits(max_gpus=MAX_GPUS)) for offers in (MARKETS[market], doubled))
    assert before is not None
    assert after is not None
    assert after.cost.usd == pytest.approx(2 * before.cost.usd, rel=1e-9)
    assert (after.stack.names, after.setting, after.offer.name, after.layers) == (
        before.stack.names, before.setting, before.offer.name, before.layers,
    )  # fmt: skip


def test_the_model_is_the_one_meant() -> None:
    """Small enough to fold thousands of points, large enough that states and activations compete."""
    model: Model = MODEL
    assert 16e6 < model.parameter_count < 25e6
