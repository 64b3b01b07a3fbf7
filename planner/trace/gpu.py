"""Operators dispatch as on a CUDA device (Ampere or later), where meta tensors alone would take another path.

    attention  SDPA's flash kernel (16 bit, no mask, equal head sizes up to 256; grouped heads as they are), else its
               efficient kernel, else torch's own composition, which is what a meta tensor always gets
    dropout    one fused kernel that keeps a mask of one byte an element
    packing    transformers looks at the values of the positions to find packed sequences; there are none
    states     the kernels of mamba_ssm and causal_conv1d, and experts in other types than bf16 (`kernels`)

Source:
    torch 2.13.0 aten/src/ATen/native/transformers/attention.cpp (``scaled_dot_product_attention``, ``pad_bias``,
    ``convert_boolean_attn_mask``) and cuda/sdp_utils.cpp (which kernel takes what); transformers 5.23.0
    masking_utils.py ``find_packed_sequence_indices``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional
from transformers import masking_utils

from ..model import Model

LARGEST_FLASH_HEAD = 256
HEAD_BLOCK = 8  # the flash kernel's; other head sizes are padded
BIAS_BLOCK = 16  # the efficient kernel's: a bias' last dimension is padded to it
HALF = (torch.bfloat16, torch.float16)

_composed = functional.scaled_dot_product_attention


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """scaled_dot_product_attention with the kernel that CUDA would pick."""
    fits = query.dtype in HALF and query.shape[-1] == value.shape[-1] <= LARGEST_FLASH_HEAD
    if fits and attn_mask is None:
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if key.shape[-3] != query.shape[-3]:  # the efficient kernel refuses grouped heads
        return _composed(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    graded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, graded, dropout_p, is_causal, scale=scale
    )[0]


def _flash(query: Any, key: Any, value: Any, dropout: float, causal: bool, scale: float | None) -> Any:
    width = query.shape[-1]
    padding = -width % HEAD_BLOCK
    if padding:
        scale = width**-0.5 if scale is None else scale
        query, key, value = (functional.pad(tensor, (0, padding)) for tensor in (query, key, value))
    out = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout, causal, False, scale=scale)[0]
    return out[..., :width] if padding else out


def _bias(mask: Any, query: Any, key: Any) -> Any:
    """A mask as the efficient kernel reads it: in the query's dtype, made anew by every call, padded, of all heads."""
    if mask.dtype == torch.bool:
        zero, never = (torch.scalar_tensor(x, dtype=query.dtype, device=query.device) for x in (0.0, float("-inf")))
        mask = torch.where(mask, zero, never)
    last = mask.shape[-1]
    if last % BIAS_BLOCK:
        mask = functional.pad(mask, (0, BIAS_BLOCK - last % BIAS_BLOCK))[..., :last]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """dropout as CUDA fuses it."""
    return torch.ops.aten.native_dropout(input, p, True)[0] if training and p > 0 else input


@contextmanager
def dispatched(model: Model) -> Iterator[None]:
    """Within it, meta tensors take the paths of CUDA tensors."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(functional, "scaled_dot_product_attention", attention))
        stack.enter_context(patch.object(functional, "dropout", dropout))
        stack.enter_context(patch.object(masking_utils, "find_packed_sequence_indices", lambda position_ids: None))
        if any(block.ssm or (block.mlp and block.mlp.experts) for block, _ in model.distinct_blocks):
            from . import kernels

            stack.enter_context(kernels.installed())
        yield
