"""Operations of a forward pass: what each makes, saves, and makes again in its backward.

Each stands for ATen operations of torch 2.13.0 as derivatives.yaml and the kernels of CUDA have them. Gradients of
weights are counted elsewhere; the full-size products from which those of norms are summed are counted here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..kept import BOOL, FP32
from .tape import LEAF, PAIR, TOKEN, Gradients, Layout, Tape, Tensor

LAYER_STATISTIC = FP32  # mean, and 1/deviation, of one row


def like(tape: Tape, tensor: Tensor) -> Tensor:
    """A new tensor of this shape, type and layout."""
    return tape.new(tensor.numel, tensor.element, None, tensor.layout)


def _fresh(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
    """One new gradient of the result's shape for each input."""
    (gradient,) = gradients
    assert gradient is not None
    return [like(tape, gradient) if w else None for w in wanted]


def _same(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
    """The gradient itself for each input."""
    return [gradients[0] if w else None for w in wanted]


def pointwise(tape: Tape, x: Tensor, *, saves_input: bool = False, saves_result: bool = False) -> Tensor:
    """silu, gelu, relu, tanh, neg, scaling by a number: one new tensor forward, one backward."""
    node = tape.node((x.edge,), _fresh, (x,) if saves_input else ())
    result = tape.new(x.numel, x.element, node, x.layout)
    if saves_result:
        tape.save(node, result)
    return result


def shift(tape: Tape, x: Tensor, element: int = 0) -> Tensor:
    """Adding a number or a mask, of a wider type or not: a new tensor; the gradient passes as it is, or cast."""
    if element > x.element:
        return cast(tape, x, element)
    node = tape.node((x.edge,), _same)
    return tape.new(x.numel, x.element, node, x.layout)


def add(tape: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x + y."""
    node = tape.node((x.edge, y.edge), _same)
    return tape.new(x.numel, x.element, node, x.layout)


def multiply(tape: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x * y of one shape."""
    saved = [other for other, edge in ((y, x.edge), (x, y.edge)) if edge is not None]
    node = tape.node((x.edge, y.edge), _fresh, saved)
    return tape.new(x.numel, x.element, node, x.layout)


def multiply_table(tape: Tape, x: Tensor, element: int = 0, table: Tensor | None = None) -> Tensor:
    """x times a constant: cosines, sines. ``element``: of the result where the table is wider; ``table``: its own."""
    narrow = x.element

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        product = like(tape, gradient)
        return [cast_back(tape, product, narrow)]

    node = tape.node((x.edge,), rule, (table,))
    return tape.new(x.numel, element or x.element, node, x.layout)


def cast_back(tape: Tape, gradient: Tensor, element: int) -> Tensor:
    """The engine casts a gradient to the type of what it belongs to."""
    return gradient if gradient.element == element else tape.new(gradient.numel, element, None, gradient.layout)


def cast(tape: Tape, x: Tensor, element: int) -> Tensor:
    """x.to(type): nothing where it has it."""
    if x.element == element:
        return x
    before = x.element

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(gradient.numel, before, None, gradient.layout)]

    return tape.new(x.numel, element, tape.node((x.edge,), rule), x.layout)


def copy(tape: Tape, x: Tensor, layout: Layout = Layout.TOKENS) -> Tensor:
    """clone or contiguous."""
    node = tape.node((x.edge,), _same)
    return tape.new(x.numel, x.element, node, layout)


def view(tape: Tape, x: Tensor, layout: Layout) -> Tensor:
    """Another order of the same memory; a gradient that lies otherwise is copied back into it."""

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        gradient = gradients[0]
        assert gradient is not None
        if gradient.layout is Layout.TOKENS:
            return [gradient]
        return [tape.new(gradient.numel, gradient.element)]

    return Tensor(x.storage, x.numel, x.element, tape.node((x.edge,), rule), 0, layout)


def dropout(tape: Tape, x: Tensor, probability: float) -> Tensor:
    """native_dropout: the result and a mask of one byte per element; nothing at probability 0."""
    if not probability:
        return x
    node = tape.node((x.edge,), _fresh)
    result = tape.new(x.numel, x.element, node, x.layout)
    mask = tape.new(x.numel, BOOL)
    tape.save(node, mask)
    return result


def linear(tape: Tape, x: Tensor, width: int, *, trained: bool) -> Tensor:
    """mm or addmm with a weight: saves its input for the weight's gradient."""
    numel = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(numel, gradient.element) if wanted[0] else None, None]

    saved = ([x] if trained else []) + ([None] if x.node is not None else [])
    node = tape.node((x.edge, LEAF if trained else None), rule, saved)
    return tape.new(width * TOKEN, x.element, node)


def matmul(tape: Tape, x: Tensor, y: Tensor, numel: int, *, scaled: bool = False) -> Tensor:
    """Batched product of two tensors of heads that are ready for bmm; ``scaled``: baddbmm, whose gradients are too."""
    shapes = (x.numel, y.numel)

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [
            _product(tape, n, gradient.element, scaled=scaled) if w else None
            for n, w in zip(shapes, wanted, strict=True)
        ]

    saved = [other for other, edge in ((x, y.edge), (y, x.edge)) if edge is not None]
    node = tape.node((x.edge, y.edge), rule, saved)
    return tape.new(numel, x.element, node, Layout.HEADS)


def _product(tape: Tape, numel: int, element: int, *, scaled: bool) -> Tensor:
    product = tape.new(numel, element, None, Layout.HEADS)
    return tape.new(numel, element, None, Layout.HEADS) if scaled else product


def layer_norm(tape: Tape, x: Tensor, *, trained: bool) -> Tensor:
    """native_layer_norm: saves its input as it came and two statistics of each row."""
    node = tape.node((x.edge, LEAF if trained else None), _norm_rule, (x, None, None))
    result = tape.new(x.numel, x.element, node)
    for _ in range(2):
        tape.save(node, tape.new(TOKEN, LAYER_STATISTIC))
    return result


def _norm_rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
    (gradient,) = gradients
    assert gradient is not None
    return [like(tape, gradient) if wanted[0] else None, None]


def scale_rows(tape: Tape, x: Tensor, rows: Tensor) -> Tensor:
    """x * rows, one number for each row: the gradient of that number is summed from a full-size product."""
    small = rows.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        first = like(tape, gradient) if wanted[0] else None
        product = like(tape, gradient)
        return [first, tape.new(small, product.element)]

    node = tape.node((x.edge, rows.edge), rule, (rows, x) if x.node is not None else ())
    return tape.new(x.numel, x.element, node, x.layout)


def scale_features(
    tape: Tape, x: Tensor, *, trained: bool, weight_first: bool = True, weight: Tensor | None = None
) -> Tensor:
    """weight * x: the weight's gradient is summed from a full-size product, made before or after that of x."""

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        product = like(tape, gradient) if wanted[1] and weight_first else None
        result = like(tape, gradient) if wanted[0] else None
        last = like(tape, gradient) if wanted[1] and not weight_first else None
        del product, last
        return [result, None]

    saved = ([x] if trained else []) + ([weight] if x.node is not None else [])
    node = tape.node((x.edge, LEAF if trained else None), rule, saved)
    return tape.new(x.numel, x.element, node, x.layout)


def mean_square(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """x.pow(2).mean(-1): the square is gone at once; backward makes four tensors of x's size."""
    squares = power(tape, x)
    numel = squares.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        return [tape.new(numel, FP32)]

    return tape.new(rows, squares.element, tape.node((squares.edge,), rule))


def power(tape: Tape, x: Tensor) -> Tensor:
    """pow(x, n): backward is grad * (n * x.pow(n - 1)), each a tensor of its own."""

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        lower = like(tape, gradient)
        scaled = like(tape, gradient)
        result = like(tape, gradient)
        del lower, scaled
        return [result]

    node = tape.node((x.edge,), rule, (x,))
    return tape.new(x.numel, x.element, node, x.layout)


def slices(tape: Tape, x: Tensor, widths: Sequence[int], layout: Layout = Layout.HEADS) -> list[Tensor]:
    """x[..., a:b] for consecutive widths: each gradient is put into zeros of x's size."""
    numel = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(numel, gradient.element, None, layout)]

    return [Tensor(x.storage, width * TOKEN, x.element, tape.node((x.edge,), rule), 0, x.layout) for width in widths]


def split(tape: Tape, x: Tensor, widths: Sequence[int], layout: Layout = Layout.TOKENS) -> list[Tensor]:
    """split or chunk: all gradients are joined at once."""
    numel = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        element = next(g.element for g in gradients if g is not None)
        return [tape.new(numel, element, None, layout)]

    node = tape.node((x.edge,), rule, (), len(widths))
    return [Tensor(x.storage, w * TOKEN, x.element, node, i, x.layout) for i, w in enumerate(widths)]


def concatenate(tape: Tape, parts: Sequence[Tensor], layout: Layout = Layout.HEADS) -> Tensor:
    """cat: a new tensor; gradients are views of its gradient."""
    sizes = tuple(part.numel for part in parts)

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [
            Tensor(gradient.storage, n, gradient.element, None, 0, gradient.layout) if w else None
            for n, w in zip(sizes, wanted, strict=True)
        ]

    node = tape.node([part.edge for part in parts], rule)
    return tape.new(sum(sizes), parts[0].element, node, layout)


def repeat_heads(tape: Tape, x: Tensor, heads: int, kv_heads: int, head_dim: int, *, copies: bool = False) -> Tensor:
    """repeat_kv: a copy for all heads; one key-value head is seen by all without a copy, unless ``copies``."""
    if heads == kv_heads:
        return x
    numel, small = heads * head_dim * TOKEN, x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(small, gradient.element, None, Layout.HEADS)]

    node = tape.node((x.edge,), rule)
    if kv_heads == 1 and not copies:
        return Tensor(x.storage, numel, x.element, node, 0, Layout.EXPANDED)
    return tape.new(numel, x.element, node, Layout.HEADS)


def ready_for_bmm(tape: Tape, x: Tensor, *, alone: bool) -> Tensor:
    """Batch and heads merged: a copy unless they lie so, or there is one sequence."""
    return x if alone or x.layout is Layout.HEADS else copy(tape, x, Layout.HEADS)


def softmax(tape: Tape, x: Tensor, element: int) -> Tensor:
    """softmax(x, dtype): the input is cast first where the type differs; saves its result."""
    cast_input = cast(tape, x, element)
    del x
    node = tape.node((cast_input.edge,), _fresh)
    result = tape.new(cast_input.numel, element, node, cast_input.layout)
    tape.save(node, result)
    return result


def scores_numel(heads: int) -> int:
    """Elements of all heads' s x s scores."""
    return heads * PAIR


def add_in_place(tape: Tape, x: Tensor, y: Tensor) -> Tensor:
    """x += y."""
    return Tensor(x.storage, x.numel, x.element, tape.node((x.edge, y.edge), _same), 0, x.layout)


def select_copy(tape: Tape, x: Tensor, width: int) -> Tensor:
    """Indexing by a list: a copy; its gradient is put into zeros of x's size."""
    numel = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(numel, gradient.element)]

    return tape.new(width * TOKEN, x.element, tape.node((x.edge,), rule))


def spread(tape: Tape, x: Tensor, width: int) -> Tensor:
    """broadcast_to and flatten: a copy for all heads, whose gradients are summed."""
    small = x.numel

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        (gradient,) = gradients
        assert gradient is not None
        return [tape.new(small, gradient.element)]

    return tape.new(width * TOKEN, x.element, tape.node((x.edge,), rule))
