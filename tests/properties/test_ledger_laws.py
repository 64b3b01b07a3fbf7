"""Laws of folding and of cutting states over ranks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainplan.planner.computation import AttentionImplementation
from trainplan.planner.errors import InputError
from trainplan.planner.evaluate import evaluate
from trainplan.planner.ledger import (
    Device,
    Item,
    Ledger,
    Phase,
    Tensors,
    flat_partition,
    tensor_partition,
    touched,
)
from trainplan.planner.states import baseline
from trainplan.planner.transform import Setting, Stack, Strategy, fold
from trainplan.planner.workload import Precision as Kind
from trainplan.strategies.attention import Attention
from trainplan.strategies.checkpointing import Checkpointing
from trainplan.strategies.lora import Lora
from trainplan.strategies.loss import ChunkedLoss
from trainplan.strategies.offload_optimizer import GROUPS, OffloadOptimizer
from trainplan.strategies.offload_parameters import OffloadParameters
from trainplan.strategies.optimizer import Optimizer
from trainplan.strategies.precision import Precision
from trainplan.strategies.qlora import Qlora
from trainplan.strategies.zero import Zero

from ..tiny import folded, llama, setting

STATES = (Item.WEIGHTS, Item.FROZEN, Item.MASTER, Item.MOMENTS)

numels = st.lists(st.integers(1, 500), min_size=1, max_size=30).map(lambda n: Tensors(tuple(n)))
ranks = st.integers(1, 40)
settings_ = st.builds(
    setting,
    ranks=st.sampled_from((1, 2, 3, 8)),
    nodes=st.sampled_from((1, 2)),
    micro_batch=st.sampled_from((1, 2, 4)),
    micro_steps=st.sampled_from((1, 2, 5)),
    seq_len=st.sampled_from((64, 512)),
)


@st.composite
def stacks(draw: st.DrawFn) -> list[Strategy]:
    """Legal strategies, at most one of a kind."""
    stage = draw(st.integers(0, 3))
    chosen: list[Strategy] = [Zero(stage), Precision(draw(st.sampled_from((Kind.BF16, Kind.FP16)))), Optimizer()]
    chosen += draw(st.sampled_from(([], [Lora()], [Qlora()])))
    chosen += draw(st.sampled_from(([], [Checkpointing(2)], [Checkpointing(4, on_host=True)])))
    chosen += draw(st.sampled_from(([], [ChunkedLoss()])))
    chosen += draw(st.sampled_from(([], [Attention(AttentionImplementation.EAGER)])))
    if stage:
        chosen += draw(st.sampled_from(([], [OffloadOptimizer("cpu", GROUPS)])))
    if stage == 3:
        chosen += draw(st.sampled_from(([], [OffloadParameters("cpu")])))
    return chosen


def lines(ledger: Ledger) -> list[tuple[object, ...]]:
    """Everything a ledger says, in order."""
    return [(e.item, e.device, e.bytes, e.upper_bytes, e.phases) for e in ledger.entries]


@given(settings_)
def test_folding_nothing_is_the_identity(at: Setting) -> None:
    """An empty stack gives back the very ledger."""
    start = baseline(at)
    assert fold(start, Stack(), at) is start


@given(stacks().flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))), settings_)
def test_order_does_not_matter(pair: tuple[list[Strategy], list[Strategy]], at: Setting) -> None:
    """One set of strategies, one ledger, one configuration."""
    typed, shuffled = (evaluate(Stack.of(*s), at) for s in pair)
    assert lines(typed) == lines(shuffled)
    assert typed.work == shuffled.work
    assert typed.deepspeed == shuffled.deepspeed


@given(stacks(), settings_)
def test_folding_in_two_halves_is_folding_once(strategies: list[Strategy], at: Setting) -> None:
    """A stack may be cut anywhere: the search keeps the first half for all ranks."""
    stack = Stack.of(*strategies).strategies
    whole = fold(baseline(at), Stack(stack), at)
    for cut in range(len(stack) + 1):
        halves = fold(fold(baseline(at), Stack(stack[:cut]), at), Stack(stack[cut:]), at)
        assert lines(halves) == lines(whole)


@given(stacks(), settings_)
def test_lines_are_sound(strategies: list[Strategy], at: Setting) -> None:
    """Bytes are positive whole numbers in at least one phase; an upper bound is no less; work is positive."""
    ledger = evaluate(Stack.of(*strategies), at)
    for entry in ledger.entries:
        assert type(entry.bytes) is int
        assert 0 < entry.bytes <= entry.upper_bytes
        assert entry.phases
        assert len(set(entry.phases)) == len(entry.phases)
        assert entry.why
    assert all(w.amount > 0 for w in ledger.work)
    for device in Device:
        assert ledger.peak(device) <= ledger.peak(device, upper=True)


def test_two_decisions_of_a_kind_are_refused() -> None:
    """Both names stand in the message."""
    with pytest.raises(InputError, match=r"zero-1 and zero-2 exclude each other"):
        Stack.of(Zero(1), Zero(2))


@given(numels, ranks)
def test_cutting_loses_no_element(tensors: Tensors, count: int) -> None:
    """ranks x slice covers the whole and adds less than the padding: 2 d flat, d - 1 a tensor one by one."""
    flat, single = flat_partition(tensors, count) * count, tensor_partition(tensors, count) * count
    assert tensors.total <= flat < tensors.total + 2 * count
    assert tensors.total <= single <= tensors.total + (count - 1) * len(tensors.numels)


@given(numels, ranks)
def test_touched_is_brute_force(tensors: Tensors, count: int) -> None:
    """Whole tensors that overlap a rank's slice, for the worst rank that holds one; with and without its padding."""
    size = flat_partition(tensors, count)
    worst = padded = 0
    for rank in range(-(-tensors.total // size)):
        first, last, start, overlap = rank * size, (rank + 1) * size, 0, 0
        for numel in tensors.numels:
            overlap += numel if start < last and start + numel > first else 0
            start += numel
        worst = max(worst, overlap)
        padded = max(padded, overlap + max(0, last - tensors.total))
    assert (touched(tensors, count), touched(tensors, count, padded=True)) == (worst, padded)
    assert -(-tensors.total // count) <= padded <= tensors.total + 2 * count


@settings(max_examples=30)
@given(st.sampled_from((2, 3, 8, 64)), st.sampled_from(((), (Lora(),))))
def test_stages_nest_on_model_states(count: int, method: tuple[Strategy, ...]) -> None:
    """Each stage holds no more resident states than the one before, but for the padding of what it cuts."""
    at = setting(ranks=count)
    held = [folded(*method, Zero(stage), at=at).bytes_of(*STATES) for stage in range(4)]
    tensors = len(llama().parameters) + 2 * 28
    padding = (2 + 4 + 8) * 2 * count + (2 + 4 + 8) * tensors
    assert all(after <= before + padding for before, after in pairwise(held))
    if not method:
        assert held[0] > held[1] == held[2] > held[3]


@given(st.sampled_from((1, 2, 3)), st.sampled_from(((), (OffloadOptimizer(),))))
def test_more_ranks_hold_less(stage: int, rest: tuple[Strategy, ...]) -> None:
    """Doubling the ranks shrinks what the stage cuts, on GPU and host together."""
    held = [
        sum(
            folded(Zero(stage), *rest, at=setting(ranks=d)).bytes_of(Item.MASTER, Item.MOMENTS, device=device)
            for device in Device
        )
        for d in (1, 2, 4, 8)
    ]
    assert all(a > b for a, b in pairwise(held))
    assert held[0] / held[3] == pytest.approx(8, rel=1e-3)


@settings(max_examples=20)
@given(st.sampled_from((0, 2, 3)), st.sampled_from((64, 256)), st.sampled_from((1, 2)))
def test_checkpointing_more_layers_never_needs_more_before_recomputing(stage: int, seq_len: int, batch: int) -> None:
    """Forward, loss and the first backward fall with every checkpointed layer."""
    at = setting(seq_len=seq_len, micro_batch=batch)
    ledgers = [evaluate(Stack.of(Zero(stage), Checkpointing(k)), at) for k in range(1, 5)]
    for phase in (Phase.FORWARD, Phase.LOSS):
        sizes = [x.by_phase(Device.GPU)[phase] for x in ledgers]
        assert all(a > b for a, b in pairwise(sizes))
