"""What a DeepSpeed 0.19.8 engine holds: bytes by category, from its own objects.

The names of attributes are those of runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/bf16_optimizer.py
and runtime/fp16/{fused,unfused}_optimizer.py.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

# In this order: a storage belongs to the first category that names it, so that views are counted once.
CATEGORIES = {
    "master": ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"),
    "master_stage_0": ("fp32_groups_flat", "fp32_groups"),
    "weights_host_copy": ("param_buffer_of_bit16_for_cpu_offload_groups",),
    "weights": ("bit16_groups_flat", "fp16_groups_flat", "bf16_groups_flat", "lp_param_buffer"),
    "weights_host": ("param_groups_fp16_flat_cpu_memory",),
    "gradients": ("grad_partitions_flat_buffer", "averaged_gradients", "all_grad_tensors", "grads_in_partition"),
    "gradients_fp32": ("fp32_groups_gradients_flat",),
    "gradients_accumulated_host": ("accumulated_grads_in_cpu",),
    "staging_host": ("temp_grad_buffer_for_cpu_offload",),
    "staging": ("temp_grad_buffer_for_gpu_offload",),
}


def held_bytes(engine: Any) -> dict[str, int]:
    """Bytes by category; the categories share no storage."""
    return claimed(engine)[0]


def claimed(engine: Any, graph: Any = None) -> tuple[dict[str, int], set[int]]:
    """Bytes by category, and the storages that belong to one; the categories share no storage.

    Args:
        engine: DeepSpeed's.
        graph: the last node of the micro-step's autograd graph, while there is one.
    """
    seen: set[int] = set()
    totals: Counter[str] = Counter()
    for name, tensors in (*_categories(engine), ("retained", _retained(graph))):
        totals[name] += _claim(tensors, seen)
    return {name: total for name, total in totals.items() if total}, seen


def _categories(engine: Any) -> Iterator[tuple[str, Any]]:
    """Each category with whatever nested containers of tensors the engine keeps for it."""
    optimizer, parameters = engine.optimizer, list(engine.module.parameters())
    names = (*CATEGORIES["master"], *CATEGORIES["master_stage_0"])
    masters = [getattr(optimizer, name, None) for name in names]
    staying = _staying(optimizer)
    yield "master_staying", staying
    yield "master_gradients_staying", [master.grad for master in staying]
    yield "reduce_bucket", [bucket.buffer for bucket in getattr(optimizer, "ipg_buckets", {}).values()]
    for name, attributes in CATEGORIES.items():
        yield name, [getattr(optimizer, attribute, None) for attribute in attributes]
    trainable, frozen = [p for p in parameters if p.requires_grad], [p for p in parameters if not p.requires_grad]
    yield "weights", [getattr(p, "ds_tensor", p.data) for p in trainable]
    yield "frozen", [getattr(p, "ds_tensor", p.data) for p in frozen]
    yield "scales", [_scales(getattr(p, "quant_state", None)) for p in frozen]
    yield "secondary", [getattr(p, "ds_secondary_tensor", None) for p in parameters]
    yield "persistent", [p.data for p in parameters if getattr(p, "ds_persist", False)]
    yield "gathered", [p.data for p in parameters]
    yield "gradients", [p.grad for p in parameters]
    yield "master_gradients", [master.grad for master in _tensors(masters)]
    yield "moments", _states(getattr(engine, "basic_optimizer", None))
    yield "moments_staying", _states(getattr(optimizer, "backup_optimizer", None))
    yield "buffers", list(engine.module.buffers())
    yield "libraries", library_tensors()


def library_tensors() -> list[torch.Tensor]:
    """bitsandbytes' tables of codes, made once a process by the first model that needs one."""
    return list(_tensors(getattr(sys.modules.get("bitsandbytes.functional"), "name2qmap", None)))


def _retained(graph: Any) -> list[Any]:
    """What autograd nodes keep as attributes: bitsandbytes' ``MatMul4Bit`` its packed weight."""
    nodes, found = [graph] if graph is not None else [], {}
    while nodes:
        node = nodes.pop()
        if node not in found:
            found[node] = getattr(node, "tensors", None)
            nodes += [following for following, _ in node.next_functions if following is not None]
    return list(found.values())


def _staying(optimizer: Any) -> list[torch.Tensor]:
    """Masters of the sub-groups that a partial share leaves on the accelerator."""
    places = getattr(optimizer, "subgroup_to_device", {})
    return [optimizer.fp32_partitioned_groups_flat[i] for i, place in places.items() if place != "cpu"]


def _states(optimizer: Any) -> list[Any]:
    """State tensors of a torch optimizer, step counters left out."""
    states = getattr(optimizer, "state", {}).values()
    return [value for state in states for value in state.values() if torch.is_tensor(value) and value.numel() > 1]


def _scales(state: Any) -> list[Any]:
    """Tensors of bitsandbytes' quantisation state: scales, their scales and offset, the code."""
    if state is None:
        return []
    own = [getattr(state, name, None) for name in ("absmax", "offset", "code")]
    return [*own, *_scales(getattr(state, "state2", None))]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in nested lists and dictionaries."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)


def _claim(container: Any, seen: set[int]) -> int:
    """Bytes of the storages not claimed before."""
    total = 0
    for tensor in _tensors(container):
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total
