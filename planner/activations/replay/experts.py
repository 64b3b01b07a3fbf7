"""A layer's experts: rows are gathered by expert, multiplied group by group, and put back.

Symbols: k experts a token, so that there are k rows a token.

Source:
    transformers 5.23.0 integrations/moe.py ``grouped_mm_experts_forward``, which is the default on devices that have
    ``torch.nn.functional.grouped_mm``; models/gpt_oss/modeling_gpt_oss.py ``GptOssExperts._apply_gate``.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..kept import INT64
from . import operations as op
from .modules import Layer, activated
from .tape import LEAF, TOKEN, Gradients, Late, Tape, Tensor

INT32 = 4  # bytes


def topk(tape: Tape, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of each row, and where they are; backward puts them into zeros."""
    size = scores.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(size, gradient.element)]

    node = tape.node((scores.edge,), rule)
    values, places = tape.new(count * TOKEN, scores.element, node), tape.new(count * TOKEN, INT64)
    tape.save(node, places)
    return values, places


def normalised(tape: Tape, values: Tensor) -> Tensor:
    """values /= values.sum(): in place, so that a copy of what was there is kept, and the sum."""
    before, total = tape.new(values.numel, values.element), tape.new(TOKEN, values.element)

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [op.like(tape, gradient)]

    node = tape.node((values.edge,), rule, (before, total))
    return Tensor(values.storage, values.numel, values.element, node)


def gathered(tape: Tape, x: Tensor, places: Tensor, numel: int) -> Tensor:
    """x[places]: a copy; its gradient is put into zeros."""
    size = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(size, gradient.element)]

    return tape.new(numel, x.element, tape.node((x.edge,), rule, (places,)))


def grouped(tape: Tape, x: Tensor, numel: int, groups: Tensor, *, trained: bool) -> Tensor:
    """grouped_mm: saves its rows for the gradient of the weights, and where each group ends."""
    size = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(size, gradient.element) if wanted[0] else None, None]

    saved = ([x] if trained else []) + ([None] if x.node is not None else []) + [groups]
    node = tape.node((x.edge, LEAF if trained else None), rule, saved)
    return tape.new(numel, x.element, node)


def weighed(tape: Tape, x: Tensor, weights: Tensor) -> Tensor:
    """Rows times their routing weights, in the wider of both types: both gradients are full products before the sum."""
    narrow, small = x.element, weights.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> list[Tensor | Late | None]:
        (gradient,) = gradients
        assert gradient is not None
        first, product = [op.like(tape, gradient)], [op.like(tape, gradient)]
        return [lambda: op.cast_back(tape, first.pop(), narrow), lambda: tape.new(small, product.pop().element)]

    node = tape.node((x.edge, weights.edge), rule, (weights, x))
    return tape.new(x.numel, max(x.element, weights.element), node)


def summed(tape: Tape, x: Tensor, numel: int) -> Tensor:
    """x.view(T, k, h).sum(1): the gradient is repeated for every row, a copy."""
    size = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(size, gradient.element)]

    return tape.new(numel, x.element, tape.node((x.edge,), rule))


def experts(layer: Layer, x: Tensor, weights: Tensor) -> Tensor:
    """grouped_mm_experts_forward, with biases where the family has them; ``x`` and ``weights`` are the caller's."""
    t, full, clamped = layer.tape, layer.recipe.full, layer.mlp.activation == "swiglu_clamped"
    rows, width, hidden = layer.mlp.experts_per_token * TOKEN, layer.mlp.intermediate, layer.recipe.hidden
    ordered, order = t.new(rows, INT64), t.new(rows, INT64)
    selected = gathered(t, x, t.new(rows, INT64), rows * hidden)
    sample = gathered(t, weights, order, rows)
    counted = t.new(rows, INT32)
    ends = t.new(layer.mlp.experts, INT32)
    bias = _bias(layer, ordered, rows * 2 * width) if clamped else None
    projected = grouped(t, selected, rows * 2 * width, ends, trained=full)
    projected = _biased(t, projected, bias)
    projected = _clamped(layer, projected) if clamped else _gated(layer, projected)
    bias = _bias(layer, ordered, rows * hidden) if clamped else None
    projected = grouped(t, projected, rows * hidden, ends, trained=full)
    projected = _biased(t, projected, bias)
    weighted = weighed(t, projected, sample)
    inverse, positions = t.new(rows, INT64), t.new(rows, INT64)
    del positions
    weighted = gathered(t, weighted, inverse, rows * hidden)
    final = summed(t, weighted, hidden * TOKEN)
    del counted
    return op.cast(t, final, x.element)


def _bias(layer: Layer, ordered: Tensor, numel: int) -> Tensor:
    """bias[expert of each row]: its gradient is of a weight's kind."""

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        return [None]

    node = layer.tape.node((LEAF if layer.recipe.full else None,), rule, (ordered,))
    return layer.tape.new(numel, layer.recipe.element, node)


def _biased(tape: Tape, x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else op.add_in_place(tape, x, bias)


def _gated(layer: Layer, x: Tensor) -> Tensor:
    """act(gate) * up of one joined projection."""
    width = layer.mlp.experts_per_token * layer.mlp.intermediate
    gate, up = op.split(layer.tape, x, (width, width))
    return op.multiply(layer.tape, activated(layer, gate), up)


def _clamped(layer: Layer, x: Tensor) -> Tensor:
    """gpt-oss: (up + 1) * gate * sigmoid(alpha gate), gate and up clamped."""
    t, width = layer.tape, layer.mlp.experts_per_token * layer.mlp.intermediate
    gate, up = op.slices(t, x, (width, width))
    gate = op.pointwise(t, gate, saves_input=True)
    up = op.pointwise(t, up, saves_input=True)
    glu = op.multiply(t, gate, op.pointwise(t, op.pointwise(t, gate), saves_result=True))
    return op.multiply(t, op.shift(t, up), glu)
