"""bitsandbytes' 4-bit linear layer: its storage, and what it allocates and keeps while training.

Symbols: n = out x in elements.

    stored     n / 2 packed bytes; n / 64 scales of one byte; 4 bytes for each 256 of those; two tables and an offset
    forward    the scales twice in fp32, the weight in the input's type; no input is kept
    backward   the scales in fp32, then the weight again

Source:
    bitsandbytes 0.50.2 functional.py ``quantize_4bit``, ``dequantize_4bit``; autograd/_functions.py ``MatMul4Bit``;
    backends/cuda/ops.py ``_dequant_linear_fallback``, which every input of more than 1,536 rows takes (shorter ones may
    use a fused kernel that needs less); transformers 5.23.0 integrations/bitsandbytes.py ``replace_with_bnb_linear``.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

BLOCK, SCALE_BLOCK = 64, 256
CODE, SCALE_CODE = 16, 256  # entries of the tables


def _weight(shape: tuple[int, int], like: Any) -> Any:
    """The dequantised weight."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _scales(shape: tuple[int, int], like: Any) -> Any:
    return torch.empty(-(-shape[0] * shape[1] // BLOCK), dtype=torch.float32, device=like.device)


class _MatMul4Bit(torch.autograd.Function):  # type: ignore[misc]  # reason: torch is untyped here
    @staticmethod
    def forward(ctx: Any, input: Any, packed: Any, shape: tuple[int, int], bias: Any) -> Any:
        ctx.shape, ctx.packed = shape, packed
        scales = _scales(shape, input)
        shifted = scales + 0.0
        out = functional.linear(input, _weight(shape, input), bias)
        del scales, shifted  # alive until here, as the kernel's caller holds them
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None, None]:
        (gradient,) = gradients
        scales = _scales(ctx.shape, gradient)
        weight = _weight(ctx.shape, gradient)
        del scales
        return torch.matmul(gradient, weight), None, None, None


class TracedLinear4bit(Linear4bit):  # type: ignore[misc]  # reason: bitsandbytes is untyped here
    """A Linear4bit to peft, without a CUDA device to quantise on."""

    def __init__(self, plain: nn.Module, fan_in: int, fan_out: int, dtype: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.compute_dtype = fan_in, fan_out, dtype
        packed = torch.empty((fan_in * fan_out // 2, 1), dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.compress_statistics, self.weight.quant_type = True, "nf4"
        self.bias = plain.bias
        self._quantisation_state(-(-fan_in * fan_out // BLOCK))

    def _quantisation_state(self, scales: int) -> None:
        for name, entries, dtype in (
            ("absmax", scales, torch.uint8), ("code", CODE, torch.float32), ("offset", 1, torch.float32),
            ("scale_absmax", -(-scales // SCALE_BLOCK), torch.float32), ("scale_code", SCALE_CODE, torch.float32),
        ):  # fmt: skip
            self.register_buffer(name, torch.empty(entries, dtype=dtype, device="meta"))

    def forward(self, x: Any) -> Any:
        """As Linear4bit's, the computation being in ``compute_dtype``."""
        shape = (self.out_features, self.in_features)
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        return _MatMul4Bit.apply(x.to(self.compute_dtype), self.weight, shape, bias).to(x.dtype)


def quantise(model: Any, dtype: Any) -> None:
    """Replace every nn.Linear and Conv1D but the head's."""
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is not head and (type(child) is nn.Linear or isinstance(child, Conv1D)):
                fan_in, fan_out = child.weight.shape if isinstance(child, Conv1D) else reversed(child.weight.shape)
                setattr(parent, name, TracedLinear4bit(child, fan_in, fan_out, dtype))
    model.is_loaded_in_4bit = True
    for module in model.modules():  # as quantizers/base.py ``_assign_is_quantized``: Jamba asks for it
        if hasattr(module, "config"):
            module.config._is_quantized = True
