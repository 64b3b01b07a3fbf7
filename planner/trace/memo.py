"""Remembers what an operator returns, for inputs of equal shape, strides and type.

Layers repeat. torch computes the shapes of most meta operators in Python, which takes ten times as long as making the
tensor. Only operators that neither change an argument nor return a part of one are remembered, and only where every
tensor is on the meta device and each result is new and dense: then an empty tensor of the same layout is the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

Key = tuple[Any, ...]
Layout = tuple[Any, ...]


class Memo:
    """One run's memory: call `call` instead of the operator."""

    def __init__(self) -> None:
        self._pure: dict[Any, bool] = {}
        self._results: dict[Key, tuple[bool, tuple[Any, ...]] | None] = {}

    def call(self, operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operator returns."""
        pure = self._pure.get(operator)
        if pure is None:
            pure = self._pure[operator] = _is_pure(operator)
        signature = _signature(args) if pure else None
        named = _signature(kwargs.values()) if kwargs and signature is not None else ()
        if signature is None or named is None:
            return operator(*args, **kwargs)
        key = (operator, signature, tuple(kwargs), named)
        if key in self._results:
            known = self._results[key]
            return operator(*args, **kwargs) if known is None else _again(*known)
        out = operator(*args, **kwargs)
        self._results[key] = _learned(out)
        return out


def _is_pure(operator: Any) -> bool:
    """No argument is changed, and no result is a part of one; one operator does not say that its result is."""
    if operator is torch.ops.aten._unsafe_view.default:
        return False
    schema = operator._schema
    return all(part.alias_info is None for part in (*schema.arguments, *schema.returns))


def _signature(values: Iterable[Any]) -> Key | None:
    """Layouts of tensors and values of the rest; None where a tensor is elsewhere."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_meta:
                return None
            parts.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            inner = _signature(value)
            if inner is None:
                return None
            parts.append(inner)
        else:
            parts.append((type(value), value))
    return tuple(parts)


def _learned(out: Any) -> tuple[bool, tuple[Any, ...]] | None:
    """How to make this result again; None where that cannot be told from its layout."""
    several = isinstance(out, tuple)
    items = tuple(out) if several else (out,)
    tensors = [item for item in items if isinstance(item, torch.Tensor)]
    others = [item for item in items if not isinstance(item, torch.Tensor | int | None)]
    distinct = len({id(tensor.untyped_storage()) for tensor in tensors}) == len(tensors)
    if others or not tensors or not distinct or not all(map(_is_dense, tensors)):
        return None
    return several, tuple(_layout(item) if isinstance(item, torch.Tensor) else item for item in items)


def _is_dense(tensor: Any) -> bool:
    """Its storage is as large as its elements reach, and begins with it."""
    if not tensor.is_meta or tensor.storage_offset():
        return False
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return bool(tensor.untyped_storage().nbytes() == (reach if tensor.numel() else 0) * tensor.element_size())


def _layout(tensor: Any) -> Layout:
    return tensor.shape, tensor.stride(), tensor.dtype


def _again(several: bool, items: tuple[Any, ...]) -> Any:
    made = tuple(_empty(*item) if isinstance(item, tuple) else item for item in items)
    return made if several else made[0]


def _empty(shape: Any, stride: Any, dtype: Any) -> Any:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
