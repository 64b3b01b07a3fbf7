"""What attention keeps between its input and the tensor that its output projection reads.

Symbols: a heads, kv key-value heads, d head size, qd = a*d, kvd = kv*d, s sequence length, e bytes of an element.

    flash      q, k, v, output, and one fp32 log-sum per head and token
    efficient  the same with k and v copied to all heads (one key-value head is a free view), and where a mask is
               needed each layer's own s x s bias
    eager      q, k, v of all heads, the softmax in fp32 and its copy in e, a contiguous copy of the output

Source:
    transformers 5.23.0 integrations/sdpa_attention.py, models/llama/modeling_llama.py ``eager_attention_forward``;
    torch 2.13.0 aten/src/ATen/native/transformers (which kernel takes what, what it returns); every layer traced.
"""

from __future__ import annotations

from enum import Enum

from ..model import Attention, AttentionKind, Block, NormStyle
from .inputs import Role, kept_inputs
from .kept import BOOL, FP32, INT64, Kept, Recipe
from .norms import rms_per_token

LARGEST_FLASH_HEAD = 256  # torch 2.13.0 transformers/cuda/sdp_utils.cpp, check_head_dim_size_flash
FLASH_RANDOM_STATE = 24  # bytes: generator seed and offset, which the kernel returns
EFFICIENT_RANDOM_STATE = 16  # bytes: the same


class Kernel(Enum):
    """Which code computes softmax(q k') v."""

    FLASH = "flash"
    EFFICIENT = "efficient"
    EAGER = "eager"


def masked(attention: Attention, recipe: Recipe, seq_len: int) -> bool:
    """Padding, a window shorter than the sequence, or a family's habit makes transformers hand SDPA a mask."""
    return recipe.padded or attention.dense_mask or 0 < attention.window <= seq_len


def kernel(attention: Attention, recipe: Recipe, seq_len: int) -> Kernel:
    """The kernel that SDPA picks: flash takes 16-bit heads of equal size up to 256, and no mask.

    In fp32 the efficient kernel refuses grouped heads; torch's own composition then materialises the scores: eager.
    """
    if recipe.eager or attention.eager_only:
        return Kernel.EAGER
    half = recipe.element < FP32
    if not half and attention.kv_heads != attention.heads and not masked(attention, recipe, seq_len):
        return Kernel.EAGER
    fits = half and attention.head_dim <= LARGEST_FLASH_HEAD and attention.kind is AttentionKind.SOFTMAX
    return Kernel.FLASH if fits and not masked(attention, recipe, seq_len) else Kernel.EFFICIENT


def attention_kept(block: Block, recipe: Recipe, seq_len: int, micro_batch: int) -> Kept:
    """Everything between the attention's input and its output projection, the latter's input included."""
    attention = block.attention
    if attention is None:
        return Kept()
    if attention.kind is AttentionKind.MLA:
        return _latent(block, attention, recipe)
    norms = Kept(per_token=query_key_norms(block, attention, recipe))
    chosen = kernel(attention, recipe, seq_len)
    if chosen is Kernel.EAGER:
        return norms + _eager(block, attention, recipe, alone=micro_batch == 1)
    if chosen is Kernel.EFFICIENT:
        return norms + _efficient(block, attention, recipe, masked(attention, recipe, seq_len))
    return norms + _flash(block, attention, recipe)


def _flash(block: Block, a: Attention, recipe: Recipe) -> Kept:
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    tensors = recipe.element * (_query_key_value(a, keys, view=True) + queries)
    copied = a.rope_dim > 0 and (a.rope_concat or a.rope_dim < a.head_dim)  # q by concatenation: output transposed
    out = kept_inputs(block, Role.ATTENTION_OUT, recipe, width=queries, already=not copied)
    return Kept(per_token=tensors + FP32 * a.heads + out, fixed=FLASH_RANDOM_STATE)


def _efficient(block: Block, a: Attention, recipe: Recipe, biased: bool) -> Kept:
    queries = a.heads * a.head_dim
    copied = a.kv_heads not in (1, a.heads)
    keys = queries if copied else a.kv_heads * a.head_dim
    tensors = recipe.element * (_query_key_value(a, keys, view=a.kv_heads == a.heads) + queries)
    out = kept_inputs(block, Role.ATTENTION_OUT, recipe, width=queries, already=True)
    bias = recipe.element if biased and not a.alibi else 0  # with alibi the model adds both once, for all layers
    return Kept(per_token=tensors + FP32 * a.heads + out, per_pair=bias, fixed=EFFICIENT_RANDOM_STATE)


def _query_key_value(a: Attention, keys: int, *, view: bool) -> int:
    """Elements of q, k and v. Values that are a view of a fused projection keep all of it alive."""
    queries = a.heads * a.head_dim
    if not a.fused_qkv or not view:
        return queries + 2 * keys
    fused = queries + 2 * keys
    return fused + (queries + keys if a.rope_dim else 0)


def _eager(block: Block, a: Attention, recipe: Recipe, *, alone: bool) -> Kept:
    """``alone``: one sequence. Its heads then need no copy: a single key-value head stays a view, values a part."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    scored = FP32 if a.fp32_scores else recipe.element
    key = keys if alone and a.kv_heads == 1 else queries
    value = queries + 2 * keys if alone and a.fused_qkv and a.rope_dim and a.kv_heads == a.heads else key
    out = kept_inputs(block, Role.ATTENTION_OUT, recipe, width=queries)
    tables = 4 * recipe.element * a.rope_dim if a.fp32_scores else 0  # GPT-J: sine and cosine again for q and for k
    per_token = scored * (queries + key) + recipe.element * value + out + tables
    return Kept(per_token=per_token + _sink_per_token(a, recipe), per_pair=scores_per_pair(a, recipe))


def scores_per_pair(a: Attention, recipe: Recipe) -> int:
    """Kept bytes per pair of tokens: the softmax, in 16-bit training its copy; soft-cap; dropout's mask and result.

    The value product reads the softmax itself, its copy, or the dropped copy; of the three only that one is kept
    besides the softmax.
    """
    softmax = softmax_element(a, recipe)
    read = recipe.element if a.dropout or softmax > recipe.element else 0
    capped = recipe.element if a.soft_cap else 0
    return (softmax + read + capped + BOOL * (a.dropout > 0)) * a.heads


def softmax_element(a: Attention, recipe: Recipe) -> int:
    """Bytes of one probability as the softmax computes it."""
    return recipe.element if a.softmax_16bit or a.sinks else FP32


def _sink_per_token(a: Attention, recipe: Recipe) -> int:
    """One more column of scores, and the index of each row's maximum."""
    return (recipe.element + INT64) * a.heads if a.sinks else 0


def _latent(block: Block, a: Attention, recipe: Recipe) -> Kept:
    """MLA: q and k of nope + rope, the up-projected keys and values, the output, the two latents' norms."""
    value = a.value_dim or a.head_dim
    latents = tuple(rank for rank in (a.q_lora_rank, a.kv_lora_rank) if rank)
    norms = sum(rms_per_token(NormStyle.RMS, rank, 1, recipe) for rank in latents)
    inputs = kept_inputs(block, Role.LATENT, recipe, width=sum(latents))
    scores = FP32 * a.heads if not recipe.eager else 0
    tensors = recipe.element * a.heads * (2 * a.head_dim + (a.head_dim - a.rope_dim + value) + value)
    out = kept_inputs(block, Role.ATTENTION_OUT, recipe, width=a.heads * value, already=not recipe.eager)
    pairs = scores_per_pair(a, recipe) if recipe.eager else 0
    return Kept(per_token=norms + inputs + scores + tensors + out, per_pair=pairs, fixed=EFFICIENT_RANDOM_STATE)


def query_key_norms(block: Block, a: Attention, recipe: Recipe) -> int:
    """Norms of q and k: over each head (Qwen3, Gemma-3) or over all of them at once (OLMo-2)."""
    if not a.qk_norm:
        return 0
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    width = next((p.numel for p in block.parameters if "q_norm" in p.name), a.head_dim)
    keys_width = keys if width == queries else width
    return rms_per_token(block.norm, queries, queries // width, recipe) + rms_per_token(
        block.norm, keys, keys // keys_width, recipe
    )
