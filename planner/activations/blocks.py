"""What one layer keeps for its backward pass, and of that what is its checkpoint.

    Llama, full, flash:  16 h + 8 + 4 qd + 4 kvd + 4 a + 8 f   bytes per token
        two norms 2 (4h + 4 + 2h), their outputs 2 x 2h, attention 2qd + 4kvd + 4a + 2qd, MLP 8f

Source:
    saved-tensor logs of transformers 5.23.0 layers on meta tensors with torch 2.13.0, dispatched as on CUDA.
"""

from __future__ import annotations

from functools import lru_cache

from ..model import Block, NormStyle
from .attention import attention_kept
from .inputs import Reader, Role, adapted, kept_inputs
from .kept import BOOL, FP32, Kept, Recipe
from .mlp import mlp_kept
from .norms import LAYER_STATISTICS, norm_per_token, rms_per_token
from .ssm import mixer_kept


@lru_cache(maxsize=4096)
def block_kept(block: Block, recipe: Recipe, seq_len: int, micro_batch: int) -> Kept:
    """All that one layer keeps; the sequence's length decides whether a window needs a mask."""
    parts = (
        attention_kept(block, recipe, seq_len, micro_batch),
        mlp_kept(block, recipe),
        mixer_kept(block, recipe, seq_len, micro_batch),
    )
    return sum(parts, _around(block, recipe))


def _around(block: Block, recipe: Recipe) -> Kept:
    """Norms, the inputs of the first projections, dropout of what is added to the residual."""
    dropped = BOOL * recipe.hidden * (bool(block.attention) + bool(block.mlp)) if block.hidden_dropout else 0
    one_plus_weight = FP32 * recipe.hidden * block.norms if block.norm is NormStyle.RMS_FP32 else 0  # Gemma's 1 + w
    whole = _norms(block, recipe) + first_inputs(block, recipe) + dropped
    return Kept(per_token=-(-whole // recipe.sequence_shards), fixed=one_plus_weight)


def _norms(block: Block, recipe: Recipe) -> int:
    if block.norm is NormStyle.LAYER and block.parallel_residual:  # one input for all
        return recipe.element * recipe.hidden + LAYER_STATISTICS * block.norms
    return block.norms * norm_per_token(block.norm, recipe.hidden, recipe)


def first_inputs(block: Block, recipe: Recipe) -> int:
    """What the first projections of attention, mixer and MLP read: norm outputs; in post-norm layers the residual."""
    shared = block.parallel_residual and block.norms == 1
    roles = (Role.ATTENTION_IN,) if shared or block.mlp is None or block.attention is None else _BOTH
    if block.ssm is not None:
        mixer = recipe.trained(recipe.element * recipe.hidden)  # Mamba: its adapters are counted with the mixer
        return mixer + (kept_inputs(block, Role.MLP_IN, recipe, width=recipe.hidden) if block.mlp else 0)
    return sum(kept_inputs(block, role, recipe, width=recipe.hidden) for role in roles)


_BOTH = (Role.ATTENTION_IN, Role.MLP_IN)


def input_kept(block: Block, recipe: Recipe) -> int:
    """Bytes per token of a layer's kept tensors that are its input itself, so also its checkpoint.

    A layer norm keeps its input as it came; so does an RMS norm in fp32; in post-norm layers the first projections
    read the residual. RMS norms in 16 bit keep an fp32 copy instead.
    """
    whole = recipe.element * recipe.hidden
    if block.post_norm:
        return whole if recipe.full or any(r.role is Role.ATTENTION_IN for r in adapted(block, recipe)) else 0
    return whole if block.norm is NormStyle.LAYER or recipe.element == FP32 else 0


def unneeded_in_first(block: Block, recipe: Recipe) -> int:
    """Bytes per token that layer 0 does not keep when nothing before it is trained and nothing is recomputed.

    No gradient flows to its input: the first norm keeps nothing, dropout on that norm's output no mask, and an MLP in
    parallel to the attention nothing unless it has adapters of its own. An upper bound where adapters leave out a
    projection (k without an adapter needs no gradient either).
    """
    adapters = recipe.adapters
    if adapters is None or block.post_norm:
        return 0
    readers = adapted(block, recipe)
    if block.ssm is not None and all(r.role is not Role.MIXER for r in readers):  # Jamba: the MLP's come first
        return 2 * _norms(block, recipe) // block.norms + mixer_kept(block, recipe, 1, 1).per_token
    masks = sum(BOOL * r.weight.fan_in for r in readers if reads_first(r)) if adapters.dropout > 0 else 0
    if block.norm is not NormStyle.LAYER:
        return rms_per_token(block.norm, recipe.hidden, 1, recipe) + masks
    norms = block.norms if block.parallel_residual else 1
    aside = block.parallel_residual and not any("mlp" in r.weight.name for r in readers)
    mlp = mlp_kept(block, recipe).per_token if aside else 0
    return recipe.element * recipe.hidden + LAYER_STATISTICS * norms + masks + mlp


def reads_first(reader: Reader) -> bool:
    """Whether a projection reads the first norm's output."""
    return reader.role is Role.ATTENTION_IN or "in_proj" in reader.weight.name
