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
from ..model import Model, NormStyle, ParameterKind
from .attention import Kernel, kernel, masked
from .kept import BOOL, FP32, INT64, Recipe, recipe
from .norms import LAYER_STATISTICS, norm_per_token

# Bytes per token and unit of h while the backward of a 16-bit RMS norm before the head is at its fullest, its own
# kept tensors included: traced.
FINAL_NORM_BACKWARD_BYTES = 24


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
    fixed = FP32 * model.hidden if model.final_norm is NormStyle.RMS_FP32 else 0
    return (_norm(model, rules) + rules.trained(rules.element * model.hidden)) * seq_len * micro_batch + fixed


def _norm(model: Model, rules: Recipe) -> int:
    return norm_per_token(model.final_norm, model.hidden, rules)


def loss_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> LossBytes:
    """Logits and cross-entropy.

    All at once, in 16 bit: forward (2 + 4 + 4) V T (logits, their fp32 copy, log-softmax), saved 4 V T, backward
    (4 + 4 + 4) V T; a soft-cap keeps e V T more. In fp32 there is no copy: forward (4 + 4) V T.
    With ``loss_chunk`` = c: forward 12 V c for the one chunk alive and the gradient of the head's input, e h T, which
    alone is kept until the backward pass and scaled there. lm_head's own gradient is counted with the gradients.

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
    if computation.loss_chunk:
        return _chunked(model, rules, tokens, min(computation.loss_chunk, tokens))
    capped = rules.element if model.logits_soft_cap else 0
    copied = rules.element if rules.element < FP32 else 0
    logits = model.vocab * tokens
    backward = (3 * FP32 + capped) * logits
    return LossBytes(
        forward=(copied + 2 * FP32 + capped) * logits,
        saved=(FP32 + capped) * logits,
        backward=max(backward, _norm_backward(model, rules, tokens)),
    )


def _chunked(model: Model, rules: Recipe, tokens: int, chunk: int) -> LossBytes:
    capped = rules.element if model.logits_soft_cap else 0
    gradient = rules.element * model.hidden * tokens
    return LossBytes(
        forward=(3 * FP32 + capped) * model.vocab * chunk + gradient,
        saved=gradient,
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
    masks = _masks(model, rules, seq_len, micro_batch, checkpointed=computation.checkpointed_layers > 0)
    return labels + masks + _rotary(model, rules, seq_len) + _embedding(model, rules) * seq_len * micro_batch


def _rotary(model: Model, rules: Recipe, seq_len: int) -> int:
    """Cosine and sine, one pair of tables for each width of window in use (Gemma-3 has two)."""
    attentions = {(b.attention.rope_dim, b.attention.window > 0) for b, _ in model.distinct_blocks if b.attention}
    per_position = sum(2 * width for width, _ in attentions)
    element = FP32 if any(b.post_norm for b, _ in model.distinct_blocks) else rules.element  # OLMo-2 rotates in fp32
    return element * per_position * seq_len


def _masks(model: Model, rules: Recipe, seq_len: int, micro_batch: int, *, checkpointed: bool) -> int:
    pairs = seq_len * seq_len * micro_batch
    attentions = {b.attention for b, _ in model.distinct_blocks if b.attention}
    joined = max((rules.element * a.heads for a in attentions if a.alibi and a.dense_mask), default=0)
    if not checkpointed:
        return joined * pairs
    eager = any(kernel(a, rules, seq_len) is Kernel.EAGER for a in attentions)
    windows = len({a.window > 0 for a in attentions})
    boolean = any(masked(a, seq_len) for a in attentions) and not joined
    return (joined + (rules.element * windows if eager else BOOL * boolean)) * pairs


def _embedding(model: Model, rules: Recipe) -> int:
    """Bytes per token: GPT-2's dropout mask, BLOOM's norm."""
    normed = any(p.kind is ParameterKind.NORM and "embedding" in p.name for p in model.embedding)
    norm = rules.trained(rules.element * model.hidden + LAYER_STATISTICS) if normed else 0
    positions = sum(p.kind is ParameterKind.EMBEDDING for p in model.embedding) > 1
    dropped = any(b.hidden_dropout and b.attention and b.attention.dropout for b, _ in model.distinct_blocks)
    return norm + (BOOL * model.hidden if positions and dropped else 0)
