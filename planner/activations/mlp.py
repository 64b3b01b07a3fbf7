"""What the feed-forward part keeps between its input and the tensor that its last projection reads.

Symbols: f intermediate size, E experts, k experts per token, e bytes of an element.

    gated   gate, activation, up, and their product where the down projection is trained: 3 e f + e f
    plain   what the activation's backward needs, and its result where the down projection is trained
    mixture k rows per token of the gated terms and of the experts' outputs, and the router's bookkeeping

Source:
    transformers 5.23.0 activations.py, models/llama/modeling_llama.py ``LlamaMLP``, integrations/moe.py
    ``grouped_mm_experts_forward``, models/mixtral, models/qwen2_moe, models/deepseek_v2, models/gpt_oss; every
    layer traced.
"""

from __future__ import annotations

from ..model import Block, Mlp, MlpKind
from .inputs import Role, kept_inputs
from .kept import FP32, INT64, Kept, Recipe

# Tensors of f elements that an activation keeps for its own backward, its result not counted.
PLAIN_KEPT = {
    "relu": 0,  # its result suffices
    "gelu": 1,
    "silu": 1,
    "gelu_bloom": 1,  # an autograd function that saves its input
    "gelu_new": 4,  # the input, 0.5 x, tanh, 1 + tanh
}
LARGEST_PLAIN_KEPT = max(PLAIN_KEPT.values())  # for an activation that is not listed
# Tensors of f elements that a gated pair keeps, the product not counted.
GATED_KEPT = {"swiglu_clamped": 6}  # gpt-oss: gate and up, clamped gate, sigmoid, gated gate, 1 + up
USUAL_GATED_KEPT = 3  # gate, activation, up
FUSED_GATED_KEPT = 2  # Megatron-LM core/fusions/fused_bias_swiglu.py saves its input, gate and up joined


def mlp_kept(block: Block, recipe: Recipe) -> Kept:
    """Everything between the MLP's input and its last projection, the latter's input included."""
    mlp = block.mlp
    if mlp is None:
        return Kept()
    return _mixture(block, mlp, recipe) if mlp.experts else Kept(per_token=_dense(block, mlp, mlp.intermediate, recipe))


def _dense(block: Block, mlp: Mlp, width: int, recipe: Recipe) -> int:
    own = recipe.element * kept_by_activation(mlp, fused=recipe.fused) * width
    already = mlp.kind is MlpKind.PLAIN and mlp.activation == "relu"
    result = recipe.element * width if already else 0
    return own + result + kept_inputs(block, Role.PRODUCT, recipe, width=width, already=already)


def kept_by_activation(mlp: Mlp, *, fused: bool = False) -> int:
    """Tensors of f elements kept for the activation's (and the gate's) backward; fused: gate and up alone.

    >>> kept_by_activation(Mlp(kind=MlpKind.GATED, activation="silu", intermediate=1))
    3
    """
    if mlp.kind is MlpKind.GATED:
        if fused:
            return FUSED_GATED_KEPT
        return GATED_KEPT.get(mlp.activation, USUAL_GATED_KEPT)
    return PLAIN_KEPT.get(mlp.activation, LARGEST_PLAIN_KEPT)


def _mixture(block: Block, mlp: Mlp, recipe: Recipe) -> Kept:
    rows, hidden = mlp.experts_per_token, recipe.hidden
    activation = kept_by_activation(mlp, fused=recipe.fused) * mlp.intermediate
    row = (
        recipe.trained(recipe.element * (hidden + mlp.intermediate))  # gathered input, product
        + recipe.element * (activation + hidden)  # activation, expert's output
        + (FP32 if mlp.routing_fp32 else recipe.element)  # routing weight
        + 3 * INT64  # token of the row, its expert's order, the inverse permutation
    )
    shared = _shared(block, mlp, recipe)
    router, constant = _router(mlp, recipe)
    return Kept(per_token=rows * row + router + shared, fixed=FP32 * mlp.experts + constant)


def _router(mlp: Mlp, recipe: Recipe) -> tuple[int, int]:
    """Bytes per token and constant: fp32 scores, chosen experts, their sum and renormalised weights.

    An upper bound by 4 + 4 k bytes where the weights are not renormalised (Qwen1.5-MoE, DeepSeek-V2).
    """
    rows = mlp.experts_per_token
    scores = FP32 * mlp.experts + INT64 * rows + FP32 * (1 + rows)
    if mlp.router_fp32:
        return scores + recipe.trained(FP32 * recipe.hidden), FP32 * mlp.experts * recipe.hidden
    return scores, 0


def _shared(block: Block, mlp: Mlp, recipe: Recipe) -> int:
    if not mlp.shared_intermediate:
        return 0
    gated = any("shared_expert_gate" in p.name for p in block.parameters)  # Qwen1.5-MoE: scaled by a sigmoid
    gate = recipe.element * (1 + recipe.hidden) if gated else 0
    return gate + _dense(block, mlp, mlp.shared_intermediate, recipe)
