"""What a Mamba mixer keeps; read in source, not traced: an upper bound.

Symbols: D inner size, N states, R rank of the step size, e bytes of an element.

Mamba-1 (one fused function, which recomputes the convolution and the step size):
    2 e D (x and z) + e D (output) + e (R + 2N) (projected) + 4 e N (B and C, contiguous and as they came)
    + 8 D N per started 2,048 tokens (the scan's states between its chunks)
Jamba (convolution, norms and scan are separate): besides, e D each for the convolution's and the scan's result and the
    step size, and the norms of B, C and the step size.

Source:
    state-spaces/mamba 2.x ops/selective_scan_interface.py ``MambaInnerFn`` and csrc/selective_scan (kChunkSize 2048);
    transformers 5.23.0 models/jamba/modeling_jamba.py. transformers' own loop over the tokens, without those kernels,
    keeps far more and is not modelled.
"""

from __future__ import annotations

from ..model import Block, NormStyle, StateSpace
from .inputs import Role, kept_inputs
from .kept import Kept, Recipe
from .norms import rms_per_token

SCAN_CHUNK_TOKENS = 2048
SCAN_STATE_BYTES = 8  # an fp32 pair per state and channel at each chunk's end


def mixer_kept(block: Block, recipe: Recipe) -> Kept:
    """The mixer's tensors, the convolution's input and the output projection's input included."""
    ssm = block.ssm
    if ssm is None:
        return Kept()
    projected = ssm.dt_rank + 2 * ssm.state
    own = recipe.element * (3 * ssm.inner + projected + 4 * ssm.state)
    scan = -(-SCAN_STATE_BYTES * ssm.inner * ssm.state // SCAN_CHUNK_TOKENS)
    adapters = kept_inputs(block, Role.MIXER, recipe, width=0)
    return Kept(per_token=own + scan + adapters + _separate(block, ssm, recipe), fixed=_one_chunk(ssm))


def _one_chunk(ssm: StateSpace) -> int:
    """A started chunk counts whole."""
    return SCAN_STATE_BYTES * ssm.inner * ssm.state


def _separate(block: Block, ssm: StateSpace, recipe: Recipe) -> int:
    """Jamba's unfused mixer; it is the one with an MLP behind it."""
    if block.mlp is None:
        return 0
    widths = (ssm.dt_rank, ssm.state, ssm.state)
    norms = sum(rms_per_token(NormStyle.RMS, w, 1, recipe) + recipe.trained(recipe.element * w) for w in widths)
    return 3 * recipe.element * ssm.inner + norms
