"""What a Mamba mixer keeps and needs; traced with stand-ins for its CUDA kernels, which were read in source.

Symbols: D inner size, N states, R rank of the step size, e bytes of an element, c chunks of 2,048 tokens begun.

Mamba-1, one fused function, which recomputes the convolution and the step size:
    3 e D (x and z, output before the gate) + e (R + 2N) (projected) + 2 e N (B and C)
    + 8 c D N a sequence (the scan's states at the chunks' ends) + 8 D N (A and, where trained, its exponential)
Jamba, convolution, norms and scan one after the other:
    7 e D (x and z, convolution, the scan's three inputs, output before the gate) + e D (after it), the norms of B, C
    and the step size, and the scan's states as above

Source:
    state-spaces/mamba 2.x mamba_ssm/ops/selective_scan_interface.py ``MambaInnerFn``, ``SelectiveScanFn`` and
    csrc/selective_scan/selective_scan.cpp; Dao-AILab/causal-conv1d causal_conv1d/causal_conv1d_interface.py;
    transformers 5.23.0 models/mamba/modeling_mamba.py, models/jamba/modeling_jamba.py. transformers' own loop over the
    tokens, without those kernels, keeps far more and is not modelled.
"""

from __future__ import annotations

from ..model import Block, NormStyle, StateSpace
from .inputs import Role, kept_inputs
from .kept import FP32, Kept, Recipe
from .norms import rms_per_token

SCAN_CHUNK_TOKENS = 2048  # csrc/selective_scan/selective_scan.cpp, n_chunks
SCAN_STATE_BYTES = 8  # an fp32 pair per state and feature at each chunk's end
# Tensors of D elements a token. Kept: x and z, output before the gate; Jamba: and u, delta and z laid out for the scan.
FUSED_KEPT = 3
SEPARATE_KEPT = 6
# In the fused backward: convolution and step size again, gradients of the output, of x and z, of both, and the output.
FUSED_NEW = 8


def fused(block: Block) -> bool:
    """Mamba-1's mixer is one function; Jamba's, which has an MLP behind it, is not."""
    return block.ssm is not None and block.mlp is None


def mixer_kept(block: Block, recipe: Recipe, seq_len: int, micro_batch: int) -> Kept:
    """The mixer's tensors; the input of its first projection in full training is counted with the norms."""
    ssm = block.ssm
    if ssm is None:
        return Kept()
    own = _fused(ssm, recipe) if fused(block) else _separate(ssm, recipe)
    adapters = kept_inputs(block, Role.MIXER, recipe, width=0)
    return own + Kept(per_token=adapters, fixed=_scan(ssm, recipe, seq_len, micro_batch))


def _scan(ssm: StateSpace, recipe: Recipe, seq_len: int, micro_batch: int) -> int:
    """States at chunk ends, which a begun chunk counts whole; A (two tensors where trained), D and the step's bias."""
    chunks = -(-seq_len // SCAN_CHUNK_TOKENS) * micro_batch
    matrix = FP32 * ssm.inner * ssm.state
    vectors = 2 * FP32 * ssm.inner if recipe.element < FP32 else 0
    return SCAN_STATE_BYTES * ssm.inner * ssm.state * chunks + matrix + recipe.trained(matrix) + vectors


def _fused(ssm: StateSpace, recipe: Recipe) -> Kept:
    return Kept(per_token=recipe.element * (FUSED_KEPT * ssm.inner + ssm.dt_rank + 4 * ssm.state))


def _separate(ssm: StateSpace, recipe: Recipe) -> Kept:
    """Inputs of the projections of x, of the step size and of the output where these are trained."""
    inputs = recipe.trained(recipe.element * (2 * ssm.inner + ssm.dt_rank))
    norms = sum(rms_per_token(NormStyle.RMS, width, 1, recipe) for width in (ssm.dt_rank, ssm.state, ssm.state))
    return Kept(per_token=recipe.element * (SEPARATE_KEPT * ssm.inner + 2 * ssm.state) + inputs + norms)


def fused_transient(block: Block, ssm: StateSpace, recipe: Recipe, micro_batch: int) -> Kept:
    """The fused mixer's backward above what it kept: gradients of the residual, of every tensor between, and of A.

    More than one sequence makes a copy of x's gradient. All weights' gradients are computed, of frozen ones too.
    """
    residual = recipe.element * recipe.hidden
    if block.fp32_residual and recipe.element < FP32:
        residual += FP32 * recipe.hidden
    several = micro_batch > 1
    narrow = ssm.dt_rank + 2 * ssm.state + (0 if several else ssm.dt_rank)
    per_token = residual + recipe.element * ((FUSED_NEW + several) * ssm.inner + narrow)
    frozen = 0 if recipe.full else recipe.element * ssm.inner * (recipe.hidden + 2 * ssm.dt_rank + 2 * ssm.state)
    return Kept(per_token=per_token, fixed=FP32 * ssm.inner * (ssm.state + 2) + frozen)
