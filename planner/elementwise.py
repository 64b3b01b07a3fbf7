"""Memory traffic and launches of everything that is no multiplication: transformers' own code, and fused kernels.

    eager           reads and writes of every aten operation, traced
    Liger           one kernel each for a norm, both rotary embeddings, a dense gated activation
    torch.compile   what inductor can fuse inside one module; ZeRO-3's hooks break the graph at every module
    chunked loss    Liger's fused linear cross-entropy: the gradient takes the place of the logits

No kernel here is slower than what it stands in for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from .computation import Computation
from .model import NormStyle


@dataclass(frozen=True, slots=True)
class Elementwise:
    """Bytes read and written per element, and kernels, of one composite operation in forward and in backward."""

    forward_bytes: float
    backward_bytes: float
    forward_kernels: float
    backward_kernels: float

    def __add__(self, other: Elementwise) -> Elementwise:
        return Elementwise(
            self.forward_bytes + other.forward_bytes,
            self.backward_bytes + other.backward_bytes,
            self.forward_kernels + other.forward_kernels,
            self.backward_kernels + other.backward_kernels,
        )


# Bytes and kernels of transformers' own modelling code: reads + writes of every aten operation that is neither a view
# nor a multiplication, for bf16 activations. Source: traced on torch 2.13.0 and transformers 5.23.0 (Llama, Qwen3,
# Gemma, StarCoder2, GPT-2, OPT and Mixtral; one layer = difference of two depths).
NORMS = {
    NormStyle.RMS: Elementwise(36, 92, 8, 16),  # per element of the normed tensor; composed of small operations
    NormStyle.RMS_FP32: Elementwise(40, 104, 8, 16),
    NormStyle.LAYER: Elementwise(4, 6, 1, 1),  # one fused kernel
}
ACTIVATIONS = {"gelu_new": Elementwise(36, 56, 8, 12)}  # a composite of eight operations
FUSED_ACTIVATION = Elementwise(4, 6, 1, 1)
GATE_PRODUCT = Elementwise(6, 12, 1, 2)  # activation(gate) * up
RESIDUAL = Elementwise(6, 6, 1, 1)
FAN_OUT = Elementwise(0, 6, 0, 1)  # gradients of one input used by two projections are summed
DROPOUT = Elementwise(5, 5, 1, 1)
ROTARY = Elementwise(20, 32, 5, 8)  # per element of q or of k
BIAS = Elementwise(0, 2, 0, 1)  # the bias is added by the multiplication itself; its gradient is a sum
ADAPTER = Elementwise(10, 10, 2, 3)  # scaling of an adapter's output and its sum with the base output
ROUTING = Elementwise(26, 88, 22, 30)  # gather, weigh and scatter one routed token's hidden state
EAGER_SCORES = Elementwise(28, 28, 6, 6)  # scale, mask, cast, softmax, cast; per score
SOFT_CAP = Elementwise(12, 14, 3, 3)
CROSS_ENTROPY = Elementwise(14, 22, 2, 3)  # cast to fp32, log-softmax, loss; per logit
EMBEDDING = Elementwise(4, 4, 1, 1)
STATE_SCAN = Elementwise(24, 48, 8, 16)  # per element of T x inner x state; assumed, no published trace was found


class Operation(Enum):
    """What a fused kernel may stand in for."""

    __hash__ = object.__hash__  # members are singletons; the inherited hash is a Python call on a hot path

    NORM = "norm"
    ROTARY = "rotary embedding"
    GATE = "gated activation"  # of a dense MLP: activation(gate) * up
    ACTIVATION = "composite activation"
    SCORES = "eager scores"
    SOFT_CAP = "soft-cap of eager scores"
    ADAPTER = "adapter"
    LOSS = "cross-entropy"
    FAN_OUT = "sum of two gradients of one input"
    ROUTING = "routing of tokens to experts"


# A training framework's own kernels: a norm reads x and writes y, its backward reads x and dy and writes dx; gate and
# up are one projection; the loss reads the logits twice and writes their gradient in place. Routed tokens are sorted,
# exchanged, sorted again, and all the way back. Source: TransformerEngine 2.x common/normalization, common/activation;
# Megatron-LM core/fusions and core/transformer/moe/token_dispatcher.py, recalled and not run.
FRAMEWORK: Mapping[Operation, Elementwise] = {
    Operation.NORM: Elementwise(4, 6, 1, 1),
    Operation.ROTARY: Elementwise(4, 4, 1, 1),
    Operation.GATE: Elementwise(6, 10, 1, 1),
    Operation.ACTIVATION: Elementwise(4, 6, 1, 1),
    Operation.LOSS: Elementwise(8, 6, 2, 1),
    Operation.FAN_OUT: Elementwise(0, 0, 0, 0),
    Operation.ROUTING: Elementwise(16, 16, 4, 4),
}

# Bytes of bf16 elements that the kernels load and store. Source: LinkedIn Liger-Kernel src/liger_kernel/ops/, counted
# and not run: rms_norm.py (X to Y; dY and X to dX; a row's fp32 number and partial weight gradients are left out, which
# a second small kernel sums), rope.py (q and k in place, both in one launch), swiglu.py and geglu.py (gate and up to
# the product; its gradient, gate and up to two gradients in place).
LIGER: Mapping[Operation, Elementwise] = {
    Operation.NORM: Elementwise(4, 6, 1, 2),
    Operation.ROTARY: Elementwise(4, 4, 0.5, 0.5),
    Operation.GATE: Elementwise(6, 10, 1, 1),
}
# Derived, not traced: one kernel reads every input of a chain of pointwise operations and of the reduction at its end
# once (softmax twice) and writes its output. Nothing is taken to be fused across modules, so that residuals, sums of
# gradients and gates (whose activation is a module) stay as they are; kernels keep their eager launch time.
COMPILED: Mapping[Operation, Elementwise] = {
    Operation.NORM: Elementwise(4, 6, 1, 2),
    Operation.ROTARY: Elementwise(4, 4, 1, 1),
    Operation.ACTIVATION: Elementwise(4, 6, 1, 1),
    Operation.SCORES: Elementwise(8, 10, 2, 2),
    Operation.SOFT_CAP: Elementwise(0, 2, 0, 0),
    Operation.ADAPTER: Elementwise(6, 4, 1, 1),
    Operation.LOSS: Elementwise(6, 8, 2, 1),
}
# Liger-Kernel ops/fused_linear_cross_entropy.py and ops/cross_entropy.py: logits are read for the softmax, read again
# and overwritten by their gradient, all in the forward pass.
CHUNKED: Mapping[Operation, Elementwise] = {Operation.LOSS: Elementwise(6, 0, 1, 0)}


def fused(operation: Operation, eager: Elementwise, computation: Computation) -> Elementwise:
    """What an operation costs with the kernels that were chosen; Liger's take the place of compiled ones.

    >>> fused(Operation.NORM, NORMS[NormStyle.RMS], Computation())
    Elementwise(forward_bytes=36, backward_bytes=92, forward_kernels=8, backward_kernels=16)
    >>> fused(Operation.NORM, NORMS[NormStyle.RMS], Computation(liger=True))
    Elementwise(forward_bytes=4, backward_bytes=6, forward_kernels=1, backward_kernels=2)
    """
    chosen = (
        (computation.loss_chunk, CHUNKED),
        (computation.kernels.fused, FRAMEWORK),
        (computation.liger, LIGER),
        (computation.compiled, COMPILED),
    )
    return next((table[operation] for on, table in chosen if on and operation in table), eager)
