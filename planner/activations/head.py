"""Head, loss, and what lives outside the layers for a whole step.

Symbols: T tokens, h hidden, V vocabulary, c tokens of one loss chunk, s sequence length, e bytes of an element.

Source:
    transformers 5.23.0 loss/loss_utils.py ``ForCausalLMLoss`` (logits are cast to fp32) and masking_utils.py; torch
    2.13.0 ``_log_softmax``; traced. Chunked loss: LinkedIn Liger-Kernel ops/fused_linear_cross_entropy.py, whose
    forward computes the gradients chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..computation import Computation
from ..model import Block, Model, NormStyle, ParameterKind
from .attention import masked
from .kept import BOOL, FP32, INT64, Recipe, recipe
from .norms import LAYER_STATISTICS, norm_per_token
from .replay import peak
from .replay.head import Head, HeadMoments, head_moments

# Bytes per token and unit of h while the backward of a 16-bit RMS norm before the head is at its fullest, its own
# kept tensors included: traced.
FINAL_NORM_BACKWARD_BYTES = 24
MASK_SAVED = "mpt"  # masked_fill saves a boolean mask: modeling_mpt.py, MptAttention
TWO_ROTARY_TABLES = "gemma3"  # transformers 5.23.0 models/gemma3/modeling_gemma3.py, Gemma3RotaryEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class LossBytes:
    """Bytes of logits and loss on one GPU: each is everything of them alive at that moment."""

    forward: int  # while the loss is computed
    saved: int  # between forward and backward
    backward: int  # while its gradient, or that of the norm before it, is computed


def head_saved_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """Final norm and the input of lm_head.

    Llama: 4h + 4 + 2h + 2h bytes per token; 4h + 4 with a frozen head.

    Args:
        model: what is trained.
        computation: how.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU.

    Source:
        Memory model §A6; traced.
    """
    rules = recipe(model, computation)
    if _replayable(model, computation, rules):
        return _moments(model, rules, vocab=0).kept.bytes(seq_len, micro_batch)
    fixed = FP32 * model.hidden if model.final_norm is NormStyle.RMS_FP32 else 0
    return (_norm(model, rules) + rules.trained(rules.element * model.hidden)) * seq_len * micro_batch + fixed


def _norm(model: Model, rules: Recipe) -> int:
    return norm_per_token(model.final_norm, model.hidden, rules)


def norm_forward_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """The fullest moment of the final norm's forward pass, before there are logits; the last layer's output counts.

    Args:
        model: its norm.
        computation: precision, what is trained.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU.

    Source:
        Memory model §A4; traced.
    """
    rules = recipe(model, computation)
    if not _replayable(model, computation, rules):
        return head_saved_bytes(model, computation, seq_len, micro_batch)
    return peak(_moments(model, rules, vocab=0).forward, seq_len, micro_batch)


def loss_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> LossBytes:
    """Logits and cross-entropy.

    All at once, in 16 bit: forward (2 + 4 + 4) V T (logits, their fp32 copy, log-softmax), saved 4 V T, backward
    (4 + 4 + 4) V T; a soft-cap keeps e V T more. In fp32 there is no copy: forward (4 + 4) V T.
    With ``loss_chunk`` = c: forward e V c for the one chunk alive and the gradient of the head's input, e h T, which
    alone is kept until the backward pass. lm_head's own gradient is counted with the gradients. The final norm's
    backward competes with the loss.

    Args:
        model: V and h.
        computation: precision, and tokens of one chunk.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU at three moments.

    Source:
        Memory model §A5; traced; the chunked form is read in Liger-Kernel's source.
    """
    rules = recipe(model, computation)
    tokens = seq_len * micro_batch
    if _replayable(model, computation, rules):
        return _replayed(model, computation, rules, (seq_len, micro_batch))
    if computation.loss_chunk:
        return _chunked(model, rules, tokens, min(computation.loss_chunk, tokens))
    if computation.kernels.logit_bytes:
        return _as_stated(computation.kernels.logit_bytes, model.vocab * tokens)
    capped = rules.element if model.logits_soft_cap else 0
    copied = rules.element if rules.element < FP32 else 0
    logits = model.vocab * tokens
    backward = (3 * FP32 + capped) * logits
    return LossBytes(
        forward=(copied + 2 * FP32 + capped) * logits,
        saved=(FP32 + capped) * logits,
        backward=max(backward, _norm_backward(model, rules, tokens)),
    )


def _replayable(model: Model, computation: Computation, rules: Recipe) -> bool:
    """Whether transformers' own norm and loss end the model; Mamba's residual is of another type."""
    return rules.plain and not computation.kernels.logit_bytes and not model.blocks[-1].fp32_residual


def _moments(model: Model, rules: Recipe, *, vocab: int, chunk: int = 0) -> HeadMoments:
    style = Block(parameters=(), norm=model.final_norm, post_norm=model.blocks[-1].post_norm)
    return head_moments(Head(norm=style, vocab=vocab, capped=model.logits_soft_cap, chunk=chunk), rules)


def _replayed(model: Model, computation: Computation, rules: Recipe, shape: tuple[int, int]) -> LossBytes:
    chunk = min(computation.loss_chunk, shape[0] * shape[1])
    moments = _moments(model, rules, vocab=model.vocab, chunk=chunk)
    counted = head_saved_bytes(model, computation, *shape)
    return LossBytes(
        forward=peak(moments.forward, *shape) - counted,
        saved=moments.kept.bytes(*shape) - counted,
        backward=peak(moments.backward, *shape) - counted,
    )


def _as_stated(logit_bytes: tuple[float, ...], logits: int) -> LossBytes:
    """A framework's own loss: bytes of each logit at three moments."""
    forward, saved, backward = (round(size * logits) for size in logit_bytes)
    return LossBytes(forward=forward, saved=saved, backward=backward)


def _chunked(model: Model, rules: Recipe, tokens: int, chunk: int) -> LossBytes:
    """The head's input, which `head_saved_bytes` counts where lm_head is trained, is gone after the forward pass."""
    gradient = rules.element * model.hidden * tokens
    counted = rules.trained(gradient)
    return LossBytes(
        forward=rules.element * model.vocab * chunk + 2 * gradient - counted,
        saved=gradient - counted,
        backward=max(gradient, _norm_backward(model, rules, tokens)),
    )


def _norm_backward(model: Model, rules: Recipe, tokens: int) -> int:
    """The final norm's backward, less what `head_saved_bytes` counts of it."""
    if model.final_norm is NormStyle.LAYER:
        return 2 * rules.element * model.hidden * tokens
    kept = _norm(model, rules) + rules.trained(rules.element * model.hidden)
    return max(0, FINAL_NORM_BACKWARD_BYTES * model.hidden - kept) * tokens


def constant_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """What lives outside the layers through the step: rotary tables, shifted labels, masks, the embedding's own.

    Masks outlive the forward pass only where checkpointed layers hold on to them; with alibi the joined mask is kept.

    Args:
        model: its blocks' attention decides tables and masks.
        computation: precision, attention, checkpointing.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU.

    Source:
        Memory model §A7; traced.
    """
    rules = recipe(model, computation)
    labels = INT64 * (seq_len + (micro_batch == 1)) * micro_batch
    masks = mask_bytes(model, rules, seq_len, micro_batch, computation.checkpointed_layers)
    masks += _joined(model, rules, seq_len, micro_batch)
    graded = rules.full or computation.checkpointed_layers > 0
    embedded = _embedding(model, rules, graded=graded) * seq_len * micro_batch
    return labels + masks + _rotary(model, rules, seq_len) + embedded


def _rotary(model: Model, rules: Recipe, seq_len: int) -> int:
    """Cosine and sine once for the model; Gemma-3 has a pair more for its layers with a window.

    GPT-J's layers make their own, which the replay counts.
    """
    apart = model.family.startswith(TWO_ROTARY_TABLES)
    rotated = (b.attention for b, _ in model.distinct_blocks if b.attention and not b.attention.fp32_scores)
    attentions = {(a.rope_dim, apart and a.window > 0) for a in rotated}
    per_position = sum(2 * width for width, _ in attentions)
    element = FP32 if any(b.post_norm for b, _ in model.distinct_blocks) else rules.element  # OLMo-2 rotates in fp32
    return element * per_position * seq_len


def mask_bytes(model: Model, rules: Recipe, seq_len: int, micro_batch: int, layers: int) -> int:
    """Masks that the first ``layers`` layers read: one for each kind of window, in e bytes where attention is eager.

    Args:
        model: its blocks' attention.
        rules: precision, eager or not.
        seq_len: s, tokens.
        micro_batch: b, sequences; without padding a boolean mask is one for all of them.
        layers: how many; a checkpointed layer holds on to its mask until it is recomputed.

    Returns:
        Bytes on one GPU.

    Source:
        transformers 5.23.0 masking_utils.py ``eager_mask``, ``sdpa_mask``; traced.
    """
    distinct = {id(b): b.attention for b in model.blocks[:layers] if b.attention}
    attentions = set(distinct.values())
    if any(a.alibi and a.dense_mask for a in attentions) or model.family == MASK_SAVED:
        return 0
    if rules.eager or any(a.eager_only for a in attentions):
        return rules.element * len({a.window > 0 for a in attentions}) * seq_len * seq_len * micro_batch
    sequences = micro_batch if rules.padded else 1
    return BOOL * len({a.window > 0 for a in attentions if masked(a, rules, seq_len)}) * seq_len * seq_len * sequences


def _joined(model: Model, rules: Recipe, seq_len: int, micro_batch: int) -> int:
    """Masks that the layers save: Falcon with alibi adds mask and bias once for all layers and heads; MPT fills."""
    if model.family == MASK_SAVED:
        return BOOL * seq_len * seq_len * micro_batch
    attentions = {b.attention for b, _ in model.distinct_blocks if b.attention}
    heads = max((a.heads for a in attentions if a.alibi and a.dense_mask), default=0)
    return rules.element * heads * seq_len * seq_len * micro_batch


def _embedding(model: Model, rules: Recipe, *, graded: bool) -> int:
    """Bytes per token: GPT-2's dropout mask, BLOOM's norm, where a gradient comes that far.

    With adapters and checkpoints the embedding's result is made to require a gradient, and so is kept though positions
    are added to it (peft's ``enable_input_require_grads``).
    """
    if not graded:
        return 0
    normed = any(p.kind is ParameterKind.NORM and "embedding" in p.name for p in model.embedding)
    positions = sum(p.kind is ParameterKind.EMBEDDING for p in model.embedding) > 1
    dropped = any(b.hidden_dropout and b.attention and b.attention.dropout for b, _ in model.distinct_blocks)
    norm = rules.element * model.hidden + LAYER_STATISTICS if normed else 0
    held = rules.element * model.hidden if positions and not rules.full else 0
    return norm + held + (BOOL * model.hidden if positions and dropped else 0)
