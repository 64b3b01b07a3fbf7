"""Follows every storage from the operator that made it to its last reference.

A dispatch mode sees each ATen operator below autograd. A storage that an operator returns for the first time is born;
a weak reference to it tells its death. The sum of those alive is what torch.cuda.memory_allocated() would count,
without the allocator's rounding and without what kernels allocate inside (``workspace`` models the one that matters).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import Category
from .memo import Memo
from .workspace import WORKSPACES


def owner(name: str) -> str:
    """The module that a parameter or buffer belongs to."""
    return name.rpartition(".")[0]


META = torch.device("meta").type


class Storage:
    """One storage: what it is may become clear only later in its life."""

    __slots__ = ("bytes", "category", "dtype", "module", "operation", "shape")

    def __init__(
        self, size: int, category: Category, operation: str, shape: tuple[int, ...], dtype: Any, module: str
    ) -> None:
        self.bytes, self.category, self.operation = size, category, operation
        self.shape, self.dtype, self.module = shape, dtype, module


class Watch(weakref.ref[Any]):
    """A weak reference to torch's storage that knows the record."""

    __slots__ = ("key", "record")
    key: int
    record: Storage


class LiveStorages(TorchDispatchMode):  # type: ignore[misc]  # reason: torch is untyped here
    """Records births and deaths in their order.

    Attributes:
        events: storages; the first entry of one is its birth, the second its death.
        phases: name of each phase, and the index of its first event.
        operations: operators seen.
        workspaces: (index of the next event, bytes inside a kernel at that moment).
        doing: the operator that ran last, for error messages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Storage] = []
        self.phases: list[tuple[str, int]] = []
        self.workspaces: list[tuple[int, int]] = []
        self.operations = 0
        self.doing = ""
        self._memo = Memo()
        self._alive: dict[int, Watch] = {}
        self._modules: list[str] = [""]

    @property
    def alive(self) -> list[Storage]:
        """Storages alive now."""
        return [watch.record for watch in self._alive.values()]

    def phase(self, name: str) -> None:
        """What follows belongs to this phase."""
        self.phases.append((name, len(self.events)))

    def tag(self, tensor: Any, category: Category, operation: str = "", module: str = "") -> Storage:
        """Say what a tensor's storage is."""
        record = self._record(tensor, operation, module)
        record.category = category
        return record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and note its results; an operator that fails stays named in ``doing``."""
        self.doing = func
        out = self._memo.call(func, args, kwargs or {})
        self.operations += 1
        if isinstance(out, torch.Tensor):
            self._born(out, func)
        elif isinstance(out, tuple | list):
            for item in out:
                if isinstance(item, torch.Tensor):
                    self._born(item, func)
        if func in WORKSPACES:
            self.workspaces.append((len(self.events), WORKSPACES[func](*args)))
        return out

    def _born(self, tensor: Any, func: Any) -> None:
        if id(tensor.untyped_storage()) not in self._alive and tensor.device.type == META:
            self._record(tensor, func, self._modules[-1])

    def _record(self, tensor: Any, operation: Any, module: str) -> Storage:
        storage = tensor.untyped_storage()
        key = id(storage)
        known = self._alive.get(key)
        if known is not None:
            return known.record
        watch = Watch(storage, self._died)
        watch.key = key
        watch.record = record = Storage(
            storage.nbytes(), Category.TEMPORARIES, operation, tuple(tensor.shape), tensor.dtype, module
        )
        self._alive[key] = watch
        self.events.append(record)
        return record

    def _died(self, watch: Watch) -> None:
        del self._alive[watch.key]
        self.events.append(watch.record)

    def saving(self) -> Any:
        """A context in which what autograd saves is tagged as such."""
        return torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor)

    def _saved(self, tensor: Any) -> Any:
        known = self._alive.get(id(tensor.untyped_storage()))
        record = known.record if known else self._record(tensor, "", self._modules[-1])
        if record.category is Category.TEMPORARIES:
            record.category = Category.SAVED
        return tensor

    def watch_gradients(self, model: Any) -> None:
        """Tag each parameter's gradient: when autograd hands it over, and what the parameter keeps of it."""

        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._gradient, owner(name)))
                parameter.register_post_accumulate_grad_hook(partial(self._accumulated, owner(name)))

    def _gradient(self, module: str, gradient: Any) -> None:
        record = self.tag(gradient, Category.GRADIENTS)
        record.module = record.module or module

    def _accumulated(self, module: str, parameter: Any) -> None:
        self._gradient(module, parameter.grad)

    @contextmanager
    def naming(self, model: Any) -> Iterator[None]:
        """Know the module whose forward pass is running."""
        handles = [handle for name, module in model.named_modules() for handle in self._hooks(name, module)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str, module: Any) -> tuple[Any, Any]:
        def enter(*_: Any) -> None:
            self._modules.append(name)

        def leave(*_: Any) -> None:
            self._modules.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)
