"""What a DeepSpeed 0.19.8 engine holds: bytes by category, from its own objects, and peaks by following storages.

The names of attributes are those of runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/bf16_optimizer.py
and runtime/fp16/{fused,unfused}_optimizer.py.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


def claimed(engine: Any) -> tuple[dict[str, int], set[int]]:
    """Bytes by category, and the storages that belong to one; the categories share no storage."""
    seen: set[int] = set()
    totals: Counter[str] = Counter()
    for name, tensors in _categories(engine):
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
    yield "secondary", [getattr(p, "ds_secondary_tensor", None) for p in parameters]
    yield "persistent", [p.data for p in parameters if getattr(p, "ds_persist", False)]
    yield "gathered", [p.data for p in parameters]
    yield "gradients", [p.grad for p in parameters]
    yield "master_gradients", [master.grad for master in _tensors(masters)]
    yield "moments", _states(getattr(engine, "basic_optimizer", None))
    yield "moments_staying", _states(getattr(optimizer, "backup_optimizer", None))
    yield "buffers", list(engine.module.buffers())


def _staying(optimizer: Any) -> list[torch.Tensor]:
    """Masters of the sub-groups that a partial share leaves on the accelerator."""
    places = getattr(optimizer, "subgroup_to_device", {})
    return [optimizer.fp32_partitioned_groups_flat[i] for i, place in places.items() if place != "cpu"]


def _states(optimizer: Any) -> list[Any]:
    """State tensors of a torch optimizer, step counters left out."""
    states = getattr(optimizer, "state", {}).values()
    return [value for state in states for value in state.values() if torch.is_tensor(value) and value.numel() > 1]


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


class PeakTracker(TorchDispatchMode):  # type: ignore[misc]  # reason: mypy does not follow torch
    """Follows the storages made while it is active; CPU backward runs on the calling thread, so it is seen as well."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes: dict[str, int] = {}
        self._live: dict[int, tuple[int, Any]] = {}
        self._current_bytes = 0
        self._phase = "start"

    def enter_phase(self, phase: str) -> None:
        """Peaks from here on are this phase's; a phase entered again keeps its highest."""
        self._phase = phase
        self._note()

    def _note(self) -> None:
        self.peak_bytes[self._phase] = max(self.peak_bytes.get(self._phase, 0), self._current_bytes)

    def _freed(self, key: int) -> None:
        size_bytes, _ = self._live.pop(key, (0, None))
        self._current_bytes -= size_bytes

    def _made(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size_bytes = storage._cdata, storage.nbytes()
        if not size_bytes or storage.device.type == "meta" or key in self._live:
            return
        self._live[key] = (size_bytes, weakref.ref(storage, lambda _: self._freed(key)))
        self._current_bytes += size_bytes
        self._note()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf):
                self._made(leaf)
        return result


class Recorder:
    """Notes what an engine holds after each part of a step, and the most that is alive during it; or nothing at all."""

    def __init__(self, *, measure: bool) -> None:
        self.holding = measure  # whether bytes by category are wanted now
        self.held_bytes: dict[str, dict[str, int]] = {}
        self._tracker = PeakTracker() if measure else None

    @property
    def peak_bytes(self) -> dict[str, int]:
        """The most that was alive during each part."""
        return self._tracker.peak_bytes if self._tracker else {}

    def __enter__(self) -> None:
        if self._tracker:
            self._tracker.__enter__()

    def __exit__(self, *exception: Any) -> None:
        if self._tracker:
            self._tracker.__exit__(*exception)

    @contextmanager
    def during(self, phase: str, engine: Any) -> Iterator[None]:
        """Peaks inside are this phase's; what is held at its end is noted. Inside ``step``, the update is noted too."""
        if self._tracker:
            self._tracker.enter_phase(phase)
        if phase == "step":
            self._watch_update(engine)
        yield
        self.hold(phase, engine)

    def hold(self, phase: str, engine: Any) -> None:
        """Note bytes by category, if they are wanted now."""
        if self._tracker and self.holding:
            self.held_bytes[phase] = held_bytes(engine)

    def _watch_update(self, engine: Any) -> None:
        """Note ``update`` when ZeRO is about to update its first group: all fp32 gradients of that group exist."""
        original = getattr(engine.optimizer, "_optimizer_step", None)
        if original is None or not (self._tracker and self.holding):
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            engine.optimizer._optimizer_step = original
            self.hold("update", engine)
            return original(*args, **kwargs)

        engine.optimizer._optimizer_step = watched
