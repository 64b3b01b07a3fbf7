"""What one layer needs, moment by moment: its own program, run on a tape that counts bytes instead of computing.

Closed forms of a layer's backward would be one for each of its moments, kernels, adapters and kinds of norm. Here a
family's layer is written once, as transformers writes it (`decoders`, from the parts in `modules`), out of operations
that know what they save and make (`operations`), and a tape gives every tensor its lifetime (`tape`). The result is a
handful of polynomials in the batch, one for each moment that some batch could make the fullest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial

from ...model import Block, Parameter, ParameterKind
from ..kept import Kept, Recipe
from .decoders import DECODERS
from .mixtures import MIXTURES
from .modules import Layer
from .tape import TOKEN, Edge, Tape, Tensor, unpacked

Moments = tuple[Kept, ...]
LAYERS = DECODERS | MIXTURES


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one layer. Moments count its input, and what it had kept by then."""

    kept: Kept  # after its forward pass, when nothing is recomputed
    forward: Moments
    backward: Moments
    dropped: Moments  # forward pass of a checkpointed layer
    recomputed: Moments  # from the arrival of the gradient on
    keeps_input: bool  # its input is among what it kept


def replayable(block: Block, recipe: Recipe) -> bool:
    """Whether the family's layer is written down, and runs on transformers' own kernels."""
    return recipe.family in LAYERS and recipe.plain


def footprint(block: Block, recipe: Recipe, seq_len: int, micro_batch: int, *, graded: bool = True) -> Footprint:
    """Replay one layer with and without checkpointing.

    Args:
        block: the layer.
        recipe: family, precision, adapters.
        seq_len: s; whether a window needs a mask follows from it, and nothing else.
        micro_batch: b; heads of one sequence merge without a copy.
        graded: a gradient flows to the layer's input.
    """
    window = block.attention.window if block.attention else 0
    return _footprint(block, recipe, window if 0 < window <= seq_len else 1, micro_batch == 1, graded)


@lru_cache(maxsize=4096)
def _footprint(block: Block, recipe: Recipe, seq_len: int, alone: bool, graded: bool) -> Footprint:
    kept, forward, backward, keeps_input = _whole(_layer(block, recipe, seq_len, alone=alone), graded=graded)
    dropped, recomputed = _checkpointed(_layer(block, recipe, seq_len, alone=alone)) if graded else ((), ())
    return Footprint(kept, forward, backward, dropped, recomputed, keeps_input)


def _layer(block: Block, recipe: Recipe, seq_len: int, *, alone: bool) -> Layer:
    weights = {p.name.removesuffix(".weight"): p for p in block.parameters if p.kind is ParameterKind.LINEAR}
    adapters = recipe.adapters
    adapted = frozenset(adapters.adapted(block)) if adapters is not None else frozenset[Parameter]()
    return Layer(Tape(), block, recipe, seq_len, alone, weights, adapted)


def _whole(layer: Layer, *, graded: bool) -> tuple[Kept, Moments, Moments, bool]:
    tape = layer.tape
    x = tape.source(layer.recipe.hidden * TOKEN, layer.recipe.element, graded=graded)
    out, held = LAYERS[layer.recipe.family](layer, x)
    before = tape.live
    del held
    carried = before - tape.live  # by the caller, while the next layer runs
    forward = largest(level + carried for level in tape.levels())
    before = tape.live
    del x
    keeps_input = tape.live == before
    kept = tape.live - out.storage.size
    edge, gradient = out.edge, [tape.new(out.numel, out.element)]
    del out
    tape.levels()
    backward = backward_moments(tape, edge, gradient)
    return unpacked(kept), forward, backward, keeps_input


def backward_moments(tape: Tape, edge: Edge, gradient: list[Tensor]) -> Moments:
    """Run the backward pass; ``gradient`` holds the only reference to what arrived."""
    if edge is None:
        return largest({tape.live})
    tape.moments.add(tape.live)
    left = tape.backward(edge, gradient)
    left.clear()
    return largest(tape.levels())


def _checkpointed(layer: Layer) -> tuple[Moments, Moments]:
    """The input lives through both passes."""
    tape = layer.tape
    x = tape.source(layer.recipe.hidden * TOKEN, layer.recipe.element, graded=True)
    out, held = tape.checkpoint(partial(LAYERS[layer.recipe.family], layer, x))
    before = tape.live
    del held
    carried = before - tape.live
    dropped = largest(level + carried for level in tape.levels())
    edge, gradient = out.edge, [tape.new(out.numel, out.element)]
    del out
    tape.levels()
    recomputed = backward_moments(tape, edge, gradient)
    del x
    return dropped, recomputed


def largest(levels: Iterable[int]) -> Moments:
    """The polynomials that no other exceeds in every coefficient."""
    amounts = sorted({unpacked(level) for level in levels}, key=_order, reverse=True)
    kept: list[Kept] = []
    for amount in amounts:
        if not any(_covers(other, amount) for other in kept):
            kept.append(amount)
    return tuple(kept)


def _order(amount: Kept) -> tuple[int, int, int]:
    return amount.per_pair, amount.per_token, amount.fixed


def _covers(one: Kept, other: Kept) -> bool:
    return one.per_pair >= other.per_pair and one.per_token >= other.per_token and one.fixed >= other.fixed


def peak(moments: Moments, seq_len: int, micro_batch: int) -> int:
    """The fullest moment of one micro-batch."""
    return max((moment.bytes(seq_len, micro_batch) for moment in moments), default=0)
