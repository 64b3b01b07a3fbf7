"""What PyTorch keeps alive of a forward pass for its backward pass, and what it needs besides, moment by moment.

Symbols: T = s*b tokens, h hidden, f MLP intermediate size, a heads, qd and kvd all query and all key features,
V vocabulary, e bytes of an element. Bytes per token of one Llama layer, all weights trained, flash attention:

    16 h + 8 + 4 qd + 4 kvd + 4 a + 8 f

    replay     one layer, written as transformers writes it, on a tape that counts bytes: every moment of both passes
    kept       the polynomial every amount is written in        layers     all layers, checkpointed or not
    head       final norm, loss, tables and masks

and closed forms for kernels of other frameworks and for state-space layers, which are not replayed:

    norms, attention, mlp, ssm   parts of a layer               blocks     one layer
    inputs     which weight reads which tensor (LoRA)           transient  temporaries of one layer's backward

Compared with traces of transformers 5.23.0 models under torch 2.13.0 (tests/oracles/test_against_traces.py,
test_ledger_against_trace.py). Not counted here: gradients of weights, workspaces inside kernels, dequantised weights,
fragmentation.
"""

from __future__ import annotations

from ..computation import Computation
from ..ledger import Certainty
from ..model import Block, Model
from .blocks import block_kept
from .head import LossBytes, constant_bytes, head_saved_bytes, loss_bytes, norm_forward_bytes
from .kept import recipe
from .layers import LayerSums, checkpoint_bytes, layer_sums
from .replay import footprint, peak, replayable
from .transient import transient_bytes

__all__ = [
    "LayerSums",
    "LossBytes",
    "backward_transient_bytes",
    "block_saved_bytes",
    "certainty",
    "checkpoint_bytes",
    "constant_bytes",
    "forward_bytes",
    "head_saved_bytes",
    "layer_sums",
    "loss_bytes",
]


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
    rules = recipe(model, computation)
    if replayable(block, rules):
        return footprint(block, rules, seq_len, micro_batch).kept.bytes(seq_len, micro_batch)
    return block_kept(block, rules, seq_len, micro_batch).bytes(seq_len, micro_batch)


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
    rules = recipe(model, computation)
    if replayable(block, rules):
        whole = peak(footprint(block, rules, seq_len, micro_batch).backward, seq_len, micro_batch)
        return whole - block_saved_bytes(model, block, computation, seq_len, micro_batch)
    return transient_bytes(block, rules, seq_len, micro_batch)


def forward_bytes(model: Model, computation: Computation, seq_len: int, micro_batch: int) -> int:
    """The fullest moment of the forward pass before the logits, tables and masks that live on (§A7) left out.

    Args:
        model: its layers and final norm.
        computation: precision, adapters, attention, checkpointing.
        seq_len: s, tokens.
        micro_batch: b, sequences.

    Returns:
        Bytes on one GPU; checkpoints count only where they stay there.

    Source:
        Memory model §A4; live storages of traced forward passes.
    """
    sums = layer_sums(model, computation, seq_len, micro_batch)
    here = 0 if computation.checkpoints_on_host else sums.checkpoints
    norm = norm_forward_bytes(model, computation, seq_len, micro_batch)
    return max(sums.forward, sums.saved + here + sums.passing + norm)


def certainty(model: Model) -> Certainty:
    """TRACED: every family of the catalog was compared with traces; Mamba and Jamba with stand-ins for their kernels.

    Args:
        model: whose layers.

    Returns:
        How its activations are known.

    Source:
        tests/oracles/test_ledger_against_trace.py, test_mixtures_against_trace.py; the stand-ins, read in the kernels'
        source, are in planner/trace/kernels.py.
    """
    return Certainty.TRACED
