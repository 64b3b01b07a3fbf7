"""A fused linear cross-entropy: logits exist for one chunk of tokens, and their gradient takes their place.

Symbols: T tokens, h hidden, V vocabulary, c tokens of a chunk, e bytes of an element.

    forward    the gradient of the head's input (e h T) and of its weight (e V h, where it is trained), which are kept;
               logits of one chunk (e V c); losses (4 T)
    backward   nothing new: the kept gradients are scaled in place

Source:
    LinkedIn Liger-Kernel src/liger_kernel/ops/fused_linear_cross_entropy.py ``fused_linear_cross_entropy_forward`` with
    one logits buffer and addmm into the weight's gradient (compute capability 8.0 or later), and ``_backward``; a
    logits soft-cap is part of the kernel. The chunk is the caller's there as well as here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

IGNORED = -100


class _FusedLinearCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, labels: Any, chunk: int) -> Any:
        tokens = hidden.shape[0]
        kept = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        losses = torch.zeros(tokens, dtype=torch.float32, device=hidden.device)
        counted = labels != IGNORED
        logits = torch.empty((min(chunk, tokens), weight.shape[0]), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, tokens, chunk):
            part = hidden[start : start + chunk]
            gradient = logits[: part.shape[0]]
            torch.mm(part, weight.t(), out=gradient)
            torch.mm(gradient, weight, out=kept[start : start + chunk])
            if weight_gradient is not None:
                torch.addmm(weight_gradient, gradient.t(), part, out=weight_gradient)
        del logits, gradient, counted
        ctx.save_for_backward(kept, weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, Any, None, None]:
        kept, weight_gradient = ctx.saved_tensors
        return kept, weight_gradient, None, None


def chunked_loss(model: Any, inputs: Any, chunk: int) -> Any:
    """The loss of a causal language model whose logits are never there as a whole."""
    hidden = model.get_decoder()(input_ids=inputs, use_cache=False)[0]
    labels = functional.pad(inputs, (0, 1), value=IGNORED)[..., 1:].contiguous()
    weight = model.get_output_embeddings().weight
    hidden = hidden.to(weight.dtype)  # Mamba's residual is fp32: modeling_mamba.py, MambaForCausalLM.forward
    return _FusedLinearCrossEntropy.apply(hidden.view(-1, hidden.shape[-1]), weight, labels.view(-1), chunk)
