"""Memory that attention kernels allocate inside, which no operator returns.

Symbols: b sequences, a heads, s tokens, d head size; S and D are s and d rounded up as the kernel does.

    flash backward    4 b a S (softmax sums) + 4 b S a D (dq in fp32); with grouped heads dk and dv of all heads besides

Source:
    torch 2.13.0 aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp ``mha_bwd``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

FP32 = 4
TOKEN_BLOCK = 128
SMALL_HEAD = 128
SMALL_HEAD_BLOCK, LARGE_HEAD_BLOCK = 32, 64


def _up(size: int, block: int) -> int:
    return -(-size // block) * block


def flash_backward_bytes(_: Any, query: Any, key: Any, *__: Any) -> int:
    """Bytes of mha_bwd's own tensors, from the operator's arguments."""
    batch, heads, tokens, width = query.shape
    padded = _up(tokens, TOKEN_BLOCK)
    wide = _up(width, SMALL_HEAD_BLOCK if width <= SMALL_HEAD else LARGE_HEAD_BLOCK)
    grouped = 2 * batch * key.shape[2] * heads * width * query.element_size() if key.shape[1] != heads else 0
    return int(FP32 * batch * heads * padded * (1 + wide)) + grouped


WORKSPACES: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_backward.default: flash_backward_bytes,
}
