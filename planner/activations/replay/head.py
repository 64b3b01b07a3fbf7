"""The end of the model on a tape: final norm, lm_head and the loss.

Source:
    transformers 5.23.0 models/llama/modeling_llama.py ``LlamaForCausalLM.forward``, loss/loss_utils.py
    ``ForCausalLMLoss``; torch 2.13.0 ``log_softmax``, ``nll_loss``. Chunked: LinkedIn Liger-Kernel
    ops/fused_linear_cross_entropy.py, whose forward makes the gradients and whose logits turn into theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...model import Block
from ..kept import BOOL, FP32, Kept, Recipe
from . import operations as op
from .modules import Layer, norm
from .tape import TOKEN, Gradients, Tape, Tensor, unpacked


@dataclass(frozen=True, slots=True)
class Head:
    """What the end of a model is made of."""

    norm: Block  # a block without tensors: the style of its norm
    vocab: int
    capped: bool
    chunk: int = 0  # tokens of one chunk of the loss; 0: all at once


@dataclass(frozen=True, slots=True)
class HeadMoments:
    """Bytes from the last layer's output on; moments count that output."""

    forward: tuple[Kept, ...]
    kept: Kept
    backward: tuple[Kept, ...]


@lru_cache(maxsize=1024)
def head_moments(head: Head, recipe: Recipe) -> HeadMoments:
    """Replay norm, projection and loss."""
    from . import backward_moments, largest

    layer = Layer(Tape(), head.norm, recipe, 1, False, {}, frozenset())
    tape = layer.tape
    x = tape.source(recipe.hidden * TOKEN, recipe.element, graded=True)
    inputs = [x]
    del x
    loss = _loss(layer, head, inputs)
    forward = largest(tape.levels())
    kept = unpacked(tape.live - loss.storage.size)
    edge, gradient = loss.edge, [tape.new(0, FP32)]
    del loss
    tape.levels()
    return HeadMoments(forward, kept, backward_moments(tape, edge, gradient))


def _loss(layer: Layer, head: Head, inputs: list[Tensor]) -> Tensor:
    hidden = norm(layer, inputs[0])
    inputs.clear()
    if head.chunk:
        return _chunked(layer, head, hidden)
    t = layer.tape
    logits = op.linear(t, hidden, head.vocab, trained=layer.recipe.full)
    if head.capped:
        logits = op.pointwise(t, logits)
        logits = op.pointwise(t, logits, saves_result=True)
        logits = op.pointwise(t, logits)
    return _cross_entropy(t, logits)


def _cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """logits.float(), log_softmax, and the loss of each row's label."""
    numel = logits.numel
    wide = op.cast(t, logits, FP32)
    scores = op.softmax(t, wide, FP32)
    del wide

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        return [tape.new(numel, FP32)]

    return t.new(0, FP32, t.node((scores.edge,), rule, (scores,)))


def _chunked(layer: Layer, head: Head, hidden: Tensor) -> Tensor:
    """The gradient of the head's input is made in the forward pass and kept; backward hands it on."""
    t = layer.tape
    made = [t.new(hidden.numel, hidden.element)]
    losses, counted = t.new(TOKEN, FP32), t.new(TOKEN, BOOL)
    logits = t.new(head.chunk * head.vocab, hidden.element)
    del logits, counted

    def rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
        return [made.pop()]

    node = t.node((hidden.edge,), rule)
    total = t.new(0, FP32, node)
    del losses
    return total
