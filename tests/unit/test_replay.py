"""The tape that counts bytes instead of computing: lifetimes, saved tensors, gradients, recomputation."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainplan.planner.activations.kept import Kept
from trainplan.planner.activations.replay import operations as op
from trainplan.planner.activations.replay import peak
from trainplan.planner.activations.replay.tape import TOKEN, Layout, Tape, Tensor, packed, unpacked

WIDTH, ELEMENT = 10, 2


def per_token(levels: frozenset[int]) -> int:
    """The largest level's bytes per token."""
    return max(unpacked(level).per_token for level in levels)


def source(tape: Tape, *, graded: bool = True) -> Tensor:
    """An input of 10 elements of 2 bytes a token."""
    return tape.source(WIDTH * TOKEN, ELEMENT, graded=graded)


def mlp(tape: Tape, x: Tensor) -> Tensor:
    """Two trained projections with a SiLU between them."""
    return op.linear(tape, op.pointwise(tape, op.linear(tape, x, 40, trained=True), saves_input=True), 10, trained=True)


def test_a_storage_counts_until_its_last_reference() -> None:
    """Two names for one tensor are one storage."""
    tape = Tape()
    first = source(tape)
    second = Tensor(first.storage, first.numel, first.element)
    del first
    assert unpacked(tape.live).per_token == 20
    del second
    assert tape.live == 0


def test_a_trained_projection_keeps_its_input() -> None:
    """10 elements in; hidden 40, its SiLU 40: 20 + 80 + 80 bytes, and 20 of the result."""
    tape = Tape()
    out = mlp(tape, source(tape))
    assert unpacked(tape.live).per_token == 20 + 80 + 80 + 20
    assert out.node is not None


def test_a_frozen_projection_keeps_nothing() -> None:
    """Only the result is left, with the gradient's way back."""
    tape = Tape()
    out = op.linear(tape, source(tape), 40, trained=False)
    assert unpacked(tape.live).per_token == 80
    assert out.node is not None
    del out
    assert tape.live == 0


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    """A frozen projection of an input without gradient ends in a plain tensor."""
    tape = Tape()
    assert op.linear(tape, source(tape, graded=False), 40, trained=False).node is None


def test_backward_frees_what_it_passes() -> None:
    """Kept 180, the gradient that arrives 20, that of the SiLU's result 80; nothing but the input's is left."""
    tape = Tape()
    out = mlp(tape, source(tape))
    edge, gradient = out.edge, [tape.new(out.numel, out.element)]
    del out
    tape.levels()
    assert edge is not None
    left = tape.backward(edge, gradient)
    assert per_token(tape.levels()) == 180 + 20 + 80
    assert [g and unpacked(g.storage.size).per_token for g in left] == [20]
    left.clear()
    assert tape.live == 0


def test_two_gradients_of_one_tensor_make_a_third() -> None:
    """x + x passes its gradient on twice; the sum is new while both are there."""
    tape = Tape()
    x = source(tape)
    out = op.add(tape, x, op.pointwise(tape, x))
    del x
    edge, gradient = out.edge, [tape.new(out.numel, out.element)]
    del out
    tape.levels()
    assert edge is not None
    tape.backward(edge, gradient).clear()
    assert per_token(tape.levels()) == 3 * 20


def test_a_checkpoint_keeps_its_input_alone() -> None:
    """After the first forward pass only the input and the result are alive."""
    tape = Tape()
    x = source(tape)
    out = tape.checkpoint(partial(mlp, tape, x))
    assert unpacked(tape.live).per_token == 20 + 20
    assert out.node is not None


def test_recomputation_stops_at_the_last_saved_tensor() -> None:
    """Input, gradient, hidden and SiLU; the last projection does not run again, so nothing comes on top."""
    tape = Tape()
    x = source(tape)
    out = tape.checkpoint(partial(mlp, tape, x))
    edge, gradient = out.edge, [tape.new(out.numel, out.element)]
    del out
    tape.levels()
    assert edge is not None
    tape.backward(edge, gradient).clear()
    assert per_token(tape.levels()) == 20 + 20 + 80 + 80 + 80
    del x
    assert tape.live == 0


def test_a_gradient_in_another_order_is_copied_back() -> None:
    """What attention hands back as (b, a, s, d) costs a copy in front of the projection."""
    tape = Tape()
    node = op.view(tape, source(tape), Layout.TOKENS).node
    assert node is not None
    tape.levels()
    given_back = tape.new(WIDTH * TOKEN, ELEMENT, None, Layout.HEADS)
    (copied,) = node.rule(tape, [given_back], [True])
    assert isinstance(copied, Tensor)
    assert copied.storage is not given_back.storage


def test_the_fullest_moment_depends_on_the_batch() -> None:
    """Scores win with long sequences, token-wise tensors with short ones."""
    moments = (Kept(per_token=100), Kept(per_token=10, per_pair=1))
    assert peak(moments, 50, 1) == 100 * 50
    assert peak(moments, 200, 2) == (10 + 200) * 200 * 2


@given(
    first=st.builds(Kept, *[st.integers(0, 2**50)] * 3),
    second=st.builds(Kept, *[st.integers(0, 2**50)] * 3),
)
def test_packed_amounts_add_up(first: Kept, second: Kept) -> None:
    """Packing keeps every coefficient apart."""
    assert unpacked(packed(first) + packed(second)) == first + second


@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_dropout_keeps_a_mask_of_one_byte(probability: float) -> None:
    """At probability 0 it is not there at all."""
    tape = Tape()
    out = op.dropout(tape, source(tape), probability)
    assert unpacked(tape.live).per_token == (20 if not probability else 20 + 10)
    assert out.element == ELEMENT
