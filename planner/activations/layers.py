"""All layers of a model: what a step keeps when the first k of L layers keep only their input.

Source:
    transformers 5.23.0 modeling_layers.py ``GradientCheckpointingLayer`` with ``use_reentrant=False``, its default:
    a layer's kept tensors exist again while that layer goes backward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, takewhile

from ..computation import Computation
from ..model import Block, Model, ParameterKind
from .blocks import block_kept, input_kept, unneeded_in_first
from .head import mask_bytes
from .inputs import adapted
from .kept import BOOL, FP32, Recipe, recipe
from .replay import footprint, peak, replayable
from .transient import transient_bytes

MASK_OF_NO_LAYER = "qwen2_moe"  # transformers 5.23.0 modeling_qwen2_moe.py, Qwen2MoeModel.forward
POSITIONS_OF_EACH = "opt"  # looks positions up for each sequence: modeling_opt.py, OPTLearnedPositionalEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSums:
    """Bytes of a model's layers on one GPU. ``k`` layers, the first, are checkpointed; the others are not."""

    saved: int  # kept by the L - k layers
    checkpoints: int  # inputs of the k layers; on the host when the computation offloads them
    segment: int  # fullest recomputation above the k checkpoints, its backward temporaries included; 0: k is 0
    transient: int  # fullest backward of an un-checkpointed layer above ``saved``; 0: k is L
    first: int  # layer 0, the last to go backward: all of it that is alive then, its checkpoint included
    forward: int  # fullest moment of the forward pass, checkpoints and what earlier layers kept included
    passing: int  # of that, what only the forward pass holds: the embedding's result, masks


@dataclass(frozen=True, slots=True)
class _Profile:
    """Running sums and maxima over the layers, from which every k is read off."""

    saved_before: tuple[int, ...]  # of layers 0 .. i-1
    segment_before: tuple[int, ...]  # largest recomputation of layers 0 .. i-1
    recomputed_before: tuple[int, ...]  # the same with the checkpoints that are alive by then
    backward_from: tuple[int, ...]  # fullest backward of layers i .. , with what all before it kept
    dropped_before: tuple[int, ...]  # fullest forward pass of checkpointed layers 0 .. i-1
    checked_before: tuple[int, ...]  # the same with the checkpoints that are there by then
    forward_from: tuple[int, ...]  # fullest forward pass of layers i .. , with what all before it kept
    first_whole: int  # layer 0 recomputed, its input included
    first: int  # layer 0 not recomputed
    embedded: int  # the embedding's result, which the forward pass holds though no layer keeps it


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
    k = min(computation.checkpointed_layers, model.layers)
    graded = computation.adapters is None or k > 0  # peft's inputs require gradients with checkpoints only
    profile = _profile(model, _per_layer(computation), seq_len, micro_batch, graded)
    checkpoint = checkpoint_bytes(model, computation, seq_len, micro_batch)
    away = computation.checkpoints_on_host
    recomputed = profile.segment_before[k] + checkpoint if away else profile.recomputed_before[k] - k * checkpoint
    dropped = profile.dropped_before[k] if away else profile.checked_before[k]
    whole = profile.forward_from[k] - profile.saved_before[k] + (0 if away else k * checkpoint)
    passing = _passing(model, computation, profile, seq_len, micro_batch)
    return LayerSums(
        saved=profile.saved_before[-1] - profile.saved_before[k],
        checkpoints=k * checkpoint - (_embedded(model, computation, checkpoint) if k else 0),
        segment=recomputed if k else 0,
        transient=max(0, profile.backward_from[k] - profile.saved_before[-1]),
        first=profile.first_whole if k else profile.first,
        forward=max(dropped, whole) + passing,
        passing=passing,
    )


def _passing(model: Model, computation: Computation, profile: _Profile, seq_len: int, micro_batch: int) -> int:
    """What only the forward pass holds: the embedding's result, and masks of layers that are not checkpointed."""
    k, rules = computation.checkpointed_layers, recipe(model, computation)
    read, held = (mask_bytes(model, rules, seq_len, micro_batch, layers) for layers in (model.layers, k))
    counted = k > 0 and (not _adds_positions(model) or not rules.full)
    positions = checkpoint_bytes(model, computation, seq_len, 1 if model.family != POSITIONS_OF_EACH else micro_batch)
    unread = _unread_mask(model, rules, seq_len, micro_batch)
    return read - held + unread + (0 if counted else profile.embedded) + (positions if _adds_positions(model) else 0)


def _unread_mask(model: Model, rules: Recipe, seq_len: int, micro_batch: int) -> int:
    """A mask for windows that Qwen2-MoE makes though none of its layers has one."""
    if model.family != MASK_OF_NO_LAYER or any(b.attention and b.attention.window for b, _ in model.distinct_blocks):
        return 0
    each = rules.element * micro_batch if rules.eager else BOOL * (micro_batch if rules.padded else 1)
    return each * seq_len * seq_len


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
    whole = residual_element(model, computation) * model.hidden * seq_len * micro_batch
    return -(-whole // computation.kernels.sequence_shards)


def residual_element(model: Model, computation: Computation) -> int:
    """Bytes of one element of what runs from layer to layer."""
    wide = model.blocks[-1].fp32_residual
    return max(computation.precision.bytes, FP32) if wide else computation.precision.bytes


def _embedded(model: Model, computation: Computation, checkpoint: int) -> int:
    """What layer 0 saves of a checkpoint: an fp32 residual begins as the embedding's result, in e bytes."""
    return checkpoint - checkpoint * computation.precision.bytes // residual_element(model, computation)


@lru_cache(maxsize=4096)
def _per_layer(computation: Computation) -> Computation:
    """What all layers share: how many of them are checkpointed, and the loss, do not change one layer."""
    return replace(computation, checkpointed_layers=0, checkpoints_on_host=False, loss_chunk=0)


@lru_cache(maxsize=1024)
def _profile(model: Model, computation: Computation, seq_len: int, micro_batch: int, graded: bool) -> _Profile:
    rules = recipe(model, computation)
    shape = (seq_len, micro_batch)
    distinct = {id(block): _Layer.of(block, rules, *shape, graded=True) for block, _ in model.distinct_blocks}
    layers = [distinct[id(block)] for block in model.blocks]
    for i in range(0 if graded else _ungraded(model, rules)):
        layers[i] = _Layer.of(model.blocks[i], rules, *shape, graded=False)
    checkpoint = checkpoint_bytes(model, computation, *shape)
    before = tuple(accumulate((layer.saved for layer in layers), initial=0))
    running = [kept + layer.forward for kept, layer in zip(before, layers, strict=False)]
    return _Profile(
        saved_before=before,
        segment_before=_largest_before([layer.segment for layer in layers]),
        recomputed_before=_largest_before([layer.segment + i * checkpoint for i, layer in enumerate(layers, 1)]),
        backward_from=_largest_from([kept + layer.backward for kept, layer in zip(before, layers, strict=False)]),
        dropped_before=_largest_before([layer.dropped for layer in layers]),
        checked_before=_largest_before([layer.dropped + i * checkpoint for i, layer in enumerate(layers)]),
        forward_from=_largest_from(running),
        first_whole=layers[0].segment + checkpoint - _embedded(model, computation, checkpoint),
        first=layers[0].backward,
        embedded=0 if layers[0].keeps_input and not _adds_positions(model) else checkpoint,
    )


def _ungraded(model: Model, rules: Recipe) -> int:
    """Layers whose input needs no gradient: all up to the first that has an adapter (Jamba's attention comes late)."""
    bare = (not adapted(block, rules) for block in model.blocks)
    return min(model.layers, 1 + sum(1 for _ in takewhile(bool, bare)))


def _adds_positions(model: Model) -> bool:
    """Learned positions are added to the embedding's result, whose name lives on (GPT-2, OPT)."""
    return sum(p.kind is ParameterKind.EMBEDDING for p in model.embedding) > 1


def _largest_before(amounts: list[int]) -> tuple[int, ...]:
    """For each i the largest of amounts 0 .. i-1."""
    return tuple(accumulate(amounts, max, initial=0))


def _largest_from(amounts: list[int]) -> tuple[int, ...]:
    """For each i the largest of amounts i .., and 0 behind the last."""
    return tuple(accumulate(reversed(amounts), max, initial=0))[::-1]


@dataclass(frozen=True, slots=True)
class _Layer:
    saved: int
    backward: int  # all of it that is alive then
    segment: int  # its recomputation, above its checkpoint
    forward: int  # its input included
    dropped: int  # of a checkpointed layer; its input included
    keeps_input: bool

    @classmethod
    def of(cls, block: Block, rules: Recipe, seq_len: int, micro_batch: int, *, graded: bool) -> _Layer:
        replayed = _replayed if replayable(block, rules) else _closed
        return replayed(block, rules, seq_len, micro_batch, graded=graded)


def _replayed(block: Block, rules: Recipe, seq_len: int, micro_batch: int, *, graded: bool) -> _Layer:
    shape = (seq_len, micro_batch)
    prints = footprint(block, rules, *shape, graded=graded)
    saved, whole = prints.kept.bytes(*shape), rules.element * rules.hidden * seq_len * micro_batch
    return _Layer(
        saved=saved,
        backward=peak(prints.backward, *shape),
        segment=max(0, peak(prints.recomputed, *shape) - whole),
        forward=peak(prints.forward, *shape),
        dropped=peak(prints.dropped, *shape),
        keeps_input=prints.keeps_input,
    )


def _closed(block: Block, rules: Recipe, seq_len: int, micro_batch: int, *, graded: bool) -> _Layer:
    """State spaces and kernels of other frameworks; temporaries of their forward passes are not known."""
    shape = (seq_len, micro_batch)
    tokens = seq_len * micro_batch
    if not graded and not adapted(block, rules):
        return _Layer(saved=0, backward=0, segment=0, forward=0, dropped=0, keeps_input=False)
    saved = block_kept(block, rules, *shape).bytes(*shape) - (0 if graded else unneeded_in_first(block, rules) * tokens)
    again = transient_bytes(block, rules, *shape, recomputed=True)
    return _Layer(
        saved=saved,
        backward=saved + transient_bytes(block, rules, *shape),
        segment=saved - input_kept(block, rules) * tokens + again,
        forward=saved,
        dropped=0,
        keeps_input=input_kept(block, rules) > 0,
    )
