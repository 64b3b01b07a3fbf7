"""All layers of a model: what a step keeps when the first k of L layers keep only their input.

Source:
    transformers 5.23.0 modeling_layers.py ``GradientCheckpointingLayer`` with ``use_reentrant=False``, its default:
    a layer's kept tensors exist again while that layer goes backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from ..computation import Adapters, AttentionImplementation, Computation
from ..model import Block, Model
from ..workload import Precision
from .blocks import block_kept, input_kept, unneeded_in_first
from .kept import Recipe, recipe
from .transient import transient_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSums:
    """Bytes of a model's layers on one GPU. ``k`` layers, the first, are checkpointed; the others are not."""

    saved: int  # kept by the L - k layers
    checkpoints: int  # inputs of the k layers; on the host when the computation offloads them
    segment: int  # largest recomputed layer above its checkpoint, its backward temporaries included; 0: k is 0
    transient: int  # largest backward temporaries of an un-checkpointed layer; 0: k is L
    first: int  # layer 0, the last to go backward: all of it that is alive then, its checkpoint included


@dataclass(frozen=True, slots=True)
class _Profile:
    """Running sums and maxima over the layers, from which every k is read off."""

    saved_before: tuple[int, ...]  # of layers 0 .. i-1
    segment_before: tuple[int, ...]  # largest of layers 0 .. i-1
    transient_from: tuple[int, ...]  # largest of layers i ..
    first_saved: int
    first_whole: int  # layer 0 recomputed, its input included
    unneeded: int  # of layer 0, when it is not checkpointed
    first_transient: int


def layer_sums(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> LayerSums:
    """Sums over layers for k = ``computation.checkpointed_layers``.

    A checkpoint on the host comes back for its layer's recomputation: the segment then includes it.

    Args:
        model: its L blocks.
        computation: k, precision, adapters, attention, where checkpoints live.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU.

    Source:
        Memory model §A1-§A4; traced for k = 0 and k = L.
    """
    profile = _profile(model, computation.precision, computation.adapters, computation.attention, seq_len, micro_batch)
    k = min(computation.checkpointed_layers, model.layers)
    checkpoint = checkpoint_bytes(model, computation, seq_len, micro_batch)
    fetched = checkpoint if k and computation.checkpoints_on_host else 0
    unneeded = 0 if k else profile.unneeded
    return LayerSums(
        saved=profile.saved_before[-1] - profile.saved_before[k] - unneeded,
        checkpoints=k * checkpoint,
        segment=profile.segment_before[k] + fetched,
        transient=profile.transient_from[k],
        first=profile.first_whole if k else profile.first_saved - unneeded + profile.first_transient,
    )


def checkpoint_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """The input one checkpointed layer keeps: e h T.

    Args:
        model: h.
        computation: e, bytes of an element.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes of one layer.

    Source:
        Memory model §A2; traced.
    """
    return computation.precision.bytes * model.hidden * seq_len * micro_batch


@lru_cache(maxsize=1024)
def _profile(
    model: Model,
    precision: Precision,
    adapters: Adapters | None,
    attention: AttentionImplementation,
    seq_len: int,
    micro_batch: int,
) -> _Profile:
    rules = recipe(model, Computation(precision=precision, adapters=adapters, attention=attention))
    shape = (seq_len, micro_batch)
    distinct = {id(block): _Layer.of(block, rules, *shape) for block, _ in model.distinct_blocks}
    layers = [distinct[id(block)] for block in model.blocks]
    whole = rules.element * rules.hidden * seq_len * micro_batch
    return _Profile(
        saved_before=tuple(accumulate((layer.saved for layer in layers), initial=0)),
        segment_before=tuple(accumulate((layer.segment for layer in layers), max, initial=0)),
        transient_from=tuple(accumulate((layer.transient for layer in reversed(layers)), max, initial=0))[::-1],
        first_saved=layers[0].saved,
        first_whole=layers[0].segment + whole,
        unneeded=unneeded_in_first(model.blocks[0], rules) * seq_len * micro_batch,
        first_transient=layers[0].transient,
    )


@dataclass(frozen=True, slots=True)
class _Layer:
    saved: int
    transient: int
    segment: int

    @classmethod
    def of(cls, block: Block, rules: Recipe, seq_len: int, micro_batch: int) -> _Layer:
        saved = block_kept(block, rules, seq_len, micro_batch).bytes(seq_len, micro_batch)
        transient = transient_bytes(block, rules, seq_len, micro_batch)
        again = transient_bytes(block, rules, seq_len, micro_batch, recomputed=True)
        return cls(saved, transient, saved - input_kept(block, rules) * seq_len * micro_batch + again)
