"""What PyTorch keeps alive of a forward pass for its backward pass, and what it needs besides: closed forms.

Symbols: T = s*b tokens, h hidden, f MLP intermediate size, a heads, qd and kvd all query and all key features,
V vocabulary, e bytes of an element. Bytes per token of one Llama layer, all weights trained, flash attention:

    16 h + 8 + 4 qd + 4 kvd + 4 a + 8 f

    kept       the polynomial every form is written in          norms, attention, mlp, ssm   parts of a layer
    inputs     which weight reads which tensor (LoRA)           blocks     one layer
    transient  temporaries of one layer's backward              layers     all layers, checkpointed or not
    head       final norm, loss, tables and masks

Each form was derived operation by operation and compared with traces of transformers 5.23.0 models under torch 2.13.0
(tests/oracles/test_against_traces.py). Not counted here: gradients of weights, workspaces inside kernels, dequantised
weights, fragmentation, temporaries of a layer's forward pass (smaller than its backward's, except in eager BLOOM).
"""

from __future__ import annotations

from ..computation import Computation
from ..ledger import Certainty
from ..model import Block, Model
from .blocks import block_kept
from .head import LossBytes, constant_bytes, head_saved_bytes, loss_bytes
from .kept import recipe
from .layers import LayerSums, checkpoint_bytes, layer_sums
from .transient import transient_bytes

__all__ = [
    "ASSUMED_FAMILIES",
    "LayerSums",
    "LossBytes",
    "backward_transient_bytes",
    "block_saved_bytes",
    "certainty",
    "checkpoint_bytes",
    "constant_bytes",
    "head_saved_bytes",
    "layer_sums",
    "loss_bytes",
]

# Read in source and bounded from above; every other family was traced.
ASSUMED_FAMILIES = frozenset({"mamba", "jamba"})


def block_saved_bytes(model: Model, block: Block, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """Bytes that one layer keeps for its backward pass when it is not checkpointed.

    Args:
        model: h, and whether attention must be eager.
        block: the layer, one of the model's.
        computation: precision, adapters, attention.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU.

    Source:
        Memory model §A1; saved-tensor logs of traced layers.
    """
    return block_kept(block, recipe(model, computation), seq_len, micro_batch).bytes(seq_len, micro_batch)


def backward_transient_bytes(
    model: Model, block: Block, computation: Computation, seq_len: int, micro_batch: int
) -> int:
    """Temporaries above `block_saved_bytes` at the worst moment of one layer's backward, weight gradients excluded.

    Args:
        model: h, and whether attention must be eager.
        block: the layer, one of the model's.
        computation: precision, adapters, attention.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU.

    Source:
        Memory model §A4; live storages of traced backward passes.
    """
    return transient_bytes(block, recipe(model, computation), seq_len, micro_batch)


def certainty(model: Model) -> Certainty:
    """TRACED where a model of this family was compared with a trace, else ASSUMED: an upper bound."""
    assumed = model.family in ASSUMED_FAMILIES or any(block.ssm is not None for block in model.blocks)
    return Certainty.ASSUMED if assumed else Certainty.TRACED
