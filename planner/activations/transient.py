"""Temporaries of one layer's backward pass, above what the layer kept, at its worst moment.

Symbols: h hidden, f intermediate size, a heads, k experts per token, s sequence length, e bytes of an element (2 in
16 bit). Gradients of weights are not counted here. Four moments compete:

    MLP         e h (gradient of the residual) + the activation's and the product's gradients, less what is freed by
                then: SwiGLU 2h + 4f, frozen down projection 2h + 6f, fused GELU 2h + 2f
    mixture     gathering the rows' gradients back to tokens: 2h + 3 w k h, with w bytes of a routing weight
    softmax     eager only: scores in fp32 three times, 12 a s, while the MLP's half is already freed
    norm        fp32 arithmetic of a norm behind a sub-layer (Gemma-2, Gemma-3, OLMo-2): 18 h, under LoRA 22 h

and while a checkpointed layer is recomputed, its last moment of forward competes as well.

Source:
    live storages of traced backward passes (torch 2.13.0, transformers 5.23.0, peft 0.21.2), tensor by tensor, at
    f/h from 2.7 to 8 and sequences of 512 to 2,048 tokens; constants in units of h or f that stand alone were read off
    those traces.
"""

from __future__ import annotations

from functools import lru_cache

from ..model import AttentionKind, Block, Mlp, MlpKind, NormStyle
from .attention import Kernel, kernel, query_key_norms, softmax_element
from .blocks import block_kept
from .inputs import Role, adapted, kept_inputs
from .kept import BOOL, FP32, Kept, Recipe
from .mlp import mlp_kept
from .norms import norm_per_token
from .ssm import fused_transient

# Tensors of f elements that are new when the activation's backward is at its fullest, the product's own freed.
PLAIN_NEW = {"gelu": 1, "silu": 1, "relu": 2, "gelu_new": 2, "gelu_bloom": 5}
LARGEST_PLAIN_NEW = max(PLAIN_NEW.values())
GATED_NEW = 2  # gradients of gate and up; the product's gradient takes the product's place
SHORTCUT_NEW = 2  # plain: the gradient from beside the frozen weight, and its sum with the adapter's
CLAMPED_NEW = 6.5  # gpt-oss with frozen experts: read off one trace (f = h, k = 4); gradients of gate, sigmoid, up
# Five fp32 tensors of h elements at the worst moment of an RMS norm's backward: the normalised input's gradient, its
# product with 1/rms, the mean's gradient, the input's lower power, and that power times two. Traced.
RMS_BACKWARD_BYTES = 5 * FP32
# Multiples of h elements at the worst moment of a post-norm: fp32 gradient, product and result, and the bf16 ones.
POST_NORM_FULL_BYTES = 18
POST_NORM_LORA_BYTES = 22
POST_NORM_DROPOUT_BYTES = 24
POST_NORM_FP32_BYTES = 28  # full training in fp32; an upper bound


@lru_cache(maxsize=16384)
def transient_bytes(block: Block, recipe: Recipe, seq_len: int, micro_batch: int, *, recomputed: bool = False) -> int:
    """Bytes above `block_kept` at the worst moment of this layer's backward.

    Args:
        block: the layer.
        recipe: what is trained, and how.
        seq_len: s, tokens.
        micro_batch: b, sequences.
        recomputed: the layer is checkpointed, so that the end of its second forward competes.

    Returns:
        Bytes on one GPU.
    """
    moments = (
        _mixer(block, recipe, micro_batch) if block.mlp is None else _mlp(block, recipe, recomputed=recomputed),
        _post_norm(block, recipe),
        _second_norm(block, recipe),
        _softmax(block, recipe, seq_len, micro_batch),
        _forward_end(block, recipe) if recomputed else None,
    )
    least = recipe.element * recipe.hidden * seq_len * micro_batch
    return max(least, *(moment.bytes(seq_len, micro_batch) for moment in moments if moment is not None))


def _forward_end(block: Block, recipe: Recipe) -> Kept:
    """The gradients that arrived (2 e h), the last projection's output, and what the forward still holds.

    That is the residual, unless a layer norm keeps it; in parallel layers the attention's output. With LoRA dropout
    the adapters keep copies of their own, so the norms' outputs and the product are held besides.
    """
    mlp = block.mlp
    if mlp is not None and mlp.experts:
        return Kept(per_token=_mixture_end(mlp, recipe))
    held = 3 + (block.norm is not NormStyle.LAYER or block.parallel_residual)
    per_token = held * recipe.element * recipe.hidden
    if mlp is not None and recipe.adapters is not None and recipe.adapters.dropout > 0:
        norms = block.norms if block.parallel_residual else 1
        per_token += recipe.element * (norms * recipe.hidden + mlp.intermediate)
    return Kept(per_token=per_token)


def _mixture_end(mlp: Mlp, recipe: Recipe) -> int:
    """Rows of every chosen expert: the gradient's copies, the scaled outputs, the gathered input where not kept."""
    weight = FP32 if mlp.routing_fp32 else recipe.element
    rows = recipe.element + weight + (0 if recipe.full else recipe.element)
    held = 2 + (recipe.element < FP32)  # in fp32 the norm keeps the residual itself
    return (held * recipe.element + rows * mlp.experts_per_token) * recipe.hidden


def _mlp(block: Block, recipe: Recipe, *, recomputed: bool) -> Kept | None:
    mlp = block.mlp
    if mlp is None:
        return None
    if mlp.experts:
        return Kept(per_token=max(_gather(block, mlp, recipe, recomputed=recomputed), _expert(mlp, recipe)))
    freed = recipe.element * recipe.hidden if block.post_norm or block.norms > 2 else 0
    new = recipe.element * recipe.hidden + _new(block, mlp, recipe) + _residual_dropout(block, recipe)
    return Kept(per_token=new - (4 if recipe.full else 2) * freed)  # the norm behind the MLP was first


def _new(block: Block, mlp: Mlp, recipe: Recipe) -> int:
    """Gradients inside a dense MLP: more where the product was not kept, so that none of it is freed."""
    width = recipe.element * mlp.intermediate
    down = recipe.full or any(r.role is Role.PRODUCT for r in adapted(block, recipe))
    if recipe.adapters is not None and recipe.adapters.dropout > 0 and down:
        return _new_beside_dropout(mlp, recipe)
    if mlp.kind is MlpKind.GATED:
        fused = 2 * recipe.element * recipe.hidden if _fused_gate(block) and not recipe.full else 0
        return (GATED_NEW + (not down)) * width + fused
    new = PLAIN_NEW.get(mlp.activation, LARGEST_PLAIN_NEW)
    if recipe.full:
        return new * width
    if mlp.activation == "relu":
        return (new + down) * width
    return (max(new, SHORTCUT_NEW) if down else new + 1) * width


def _new_beside_dropout(mlp: Mlp, recipe: Recipe) -> int:
    """Three gradients of f elements; the adapter's own copy of the product (e f) and its mask (f) are freed."""
    composite = mlp.kind is MlpKind.PLAIN and mlp.activation not in {"relu", "gelu", "silu"}
    gradients = 3 + (PLAIN_NEW.get(mlp.activation, LARGEST_PLAIN_NEW) - 1 if composite else 0)
    return (gradients * recipe.element - recipe.element - BOOL) * mlp.intermediate


def _fused_gate(block: Block) -> bool:
    """Gate and up from one projection (Phi-3): their gradients are joined before they are used."""
    return any("gate_up" in p.name and len(p.shape) == 2 for p in block.parameters)


def _residual_dropout(block: Block, recipe: Recipe) -> int:
    """The mask of the MLP's dropout is freed; beside an adapter the dropped gradient stays."""
    mask = BOOL * recipe.hidden if block.hidden_dropout else 0
    return -mask if recipe.full else mask


def _gather(block: Block, mlp: Mlp, recipe: Recipe, *, recomputed: bool) -> int:
    """index_put of the rows' gradients: its clone, zeros and result, in the routing weights' type.

    DeepSeek's shared experts run last, so theirs is freed by now; Qwen1.5-MoE's run first and wait for their gate.
    """
    weight = FP32 if mlp.routing_fp32 else recipe.element
    cast = recipe.element if weight > recipe.element and not recomputed else 0  # back from fp32, outputs still kept
    rows = (recipe.element + (3 * weight + cast) * mlp.experts_per_token) * recipe.hidden
    if mlp.activation == "swiglu_clamped":
        return rows + recipe.element * recipe.hidden
    if not mlp.shared_intermediate:
        return rows
    if any("shared_expert_gate" in p.name for p in block.parameters):
        return rows + recipe.element * recipe.hidden
    return rows - recipe.element * (3 * mlp.shared_intermediate + recipe.trained(mlp.shared_intermediate))


def _expert(mlp: Mlp, recipe: Recipe) -> int:
    """The experts' activation backward; their outputs (k e h) are freed by then."""
    clamped = mlp.activation == "swiglu_clamped"
    new = GATED_NEW if recipe.full else CLAMPED_NEW if clamped else GATED_NEW + 1
    rows = new * mlp.intermediate - recipe.hidden
    return int(recipe.element * (recipe.hidden + mlp.experts_per_token * rows))


def _mixer(block: Block, recipe: Recipe, micro_batch: int) -> Kept | None:
    return fused_transient(block, block.ssm, recipe, micro_batch) if block.ssm else None


def _second_norm(block: Block, recipe: Recipe) -> Kept | None:
    """Jamba: the backward of the norm before the MLP, whose own tensors are gone, while all of the mixer's wait."""
    if block.ssm is None or block.mlp is None:
        return None
    mlp = mlp_kept(block, recipe)
    gone = mlp.per_token + kept_inputs(block, Role.MLP_IN, recipe, width=recipe.hidden)
    gone += recipe.trained(recipe.element * recipe.hidden)  # the normalised input
    return Kept(per_token=(RMS_BACKWARD_BYTES + recipe.element) * recipe.hidden - gone, fixed=-mlp.fixed)


def _post_norm(block: Block, recipe: Recipe) -> Kept | None:
    if not block.post_norm and block.norms <= 2:
        return None
    if recipe.element == FP32:
        return Kept(per_token=POST_NORM_FP32_BYTES * recipe.hidden)
    dropped = recipe.adapters is not None and recipe.adapters.dropout > 0
    lora = POST_NORM_DROPOUT_BYTES if dropped else POST_NORM_LORA_BYTES
    return Kept(per_token=(POST_NORM_FULL_BYTES if recipe.full else lora) * recipe.hidden)


def _softmax(block: Block, recipe: Recipe, seq_len: int, micro_batch: int) -> Kept | None:
    """What is alive then, less what the layer had kept.

    Softmax, its gradient and the result in fp32; q and k; gradients of the residual, of the values and of the
    output; whatever comes before the attention.
    """
    a = block.attention
    if a is None or kernel(a, recipe, seq_len) is not Kernel.EAGER or a.kind is AttentionKind.MLA:
        return None
    queries = recipe.element * a.heads * a.head_dim
    residual = recipe.element * recipe.hidden
    alive = 4 * queries + residual + before_attention(block, recipe) + query_key_norms(block, a, recipe)
    scores = (3 * softmax_element(a, recipe) + recipe.element * a.soft_cap) * a.heads
    kept = block_kept(block, recipe, seq_len, micro_batch)
    return Kept(per_token=alive - kept.per_token, per_pair=scores - kept.per_pair)


def before_attention(block: Block, recipe: Recipe) -> int:
    """Bytes per token kept by the first norm and for the attention's projections."""
    norm = 0 if block.post_norm else norm_per_token(block.norm, recipe.hidden, recipe)
    inputs = kept_inputs(block, Role.ATTENTION_IN, recipe, width=recipe.hidden)
    return norm + inputs
