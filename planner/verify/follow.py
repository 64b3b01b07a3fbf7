"""Follows one engine through a step: what every category holds at each moment, the peaks, and what nothing explains."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from deepspeed import comm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .compare import SCALAR_BYTES, TOKENS
from .meter import Meter
from .walk import claimed, library_tensors

SETTLING_ROUNDS, SETTLING_S = 10, 0.002


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


class Storages(PeakTracker):
    """Peaks by moment, and of every storage how it looks; single numbers are not followed."""

    def __init__(self) -> None:
        super().__init__()
        self._shapes: dict[int, str] = {}

    def adopt(self, tensors: Iterable[torch.Tensor]) -> None:
        """Follow tensors that no operator made, such as those of a file."""
        for tensor in tensors:
            self._made(tensor)

    def besides(self, seen: set[int]) -> list[tuple[int, str]]:
        """Size and shape of every storage that is alive and not among these."""
        return sorted((size, self._shapes[key]) for key, (size, _) in self._live.items() if key not in seen)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_dispatch__(quick(func), types, args, kwargs)

    def _made(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() <= SCALAR_BYTES:
            return
        if storage._cdata not in self._live:
            self._shapes[storage._cdata] = f"{tuple(tensor.shape)} {tensor.dtype}"
        super()._made(tensor)


aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)
KERNELS = {
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
}


def quick(func: Any) -> Any:
    """The operator; products of 16-bit matrices through fp32 where this CPU has no kernel of theirs.

    torch's own loop then does 0.06 GFLOP/s where fp32 does 9 (measured 2026-11-26, torch 2.13.0, AVX2). The result has
    the same type, and what is made in between is not the engine's and not followed.
    """
    return partial(_in_fp32, func) if func in PRODUCTS else func


def _in_fp32(func: Any, *matrices: torch.Tensor, **scales: Any) -> Any:
    kind = matrices[0].dtype
    if kind not in KERNELS or KERNELS[kind]():
        return func(*matrices, **scales)
    return func(*(matrix.float() for matrix in matrices), **scales).to(kind)


class Looker:
    """What an engine holds at each moment, by category, and what its device says by phase; nothing is followed."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.graph: Any = None  # of the micro-step that is looked at, from its forward pass to its backward pass
        self.noting = True  # a walk takes time: not in steps that are timed
        self.held_bytes: dict[str, dict[str, int]] = {}

    def enter_phase(self, phase: str) -> None:
        """Peaks from here on are this phase's: "2/1/forward" is a forward, and building is a part of the start."""
        self.meter.enter("start" if phase == "build" else phase.rpartition("/")[2])

    def built(self, model: Any) -> None:
        """The model is there, the engine is not."""

    @contextmanager
    def during(self, moment: str, engine: Any) -> Iterator[None]:
        """Follow a part of a step: its peak is ``moment``'s, and so is what is held at its end.

        Inside, ``moment/all-reduce`` is when the first tensor is about to be reduced, ``moment/reduced`` when stages 1
        and 2 are about to give their buckets back, ``moment/update`` when the optimizer is about to update.
        """
        with (
            self._before(engine.optimizer, "_release_ipg_buffers", f"{moment}/reduced", engine),
            self._before(engine.basic_optimizer, "step", f"{moment}/update", engine),
            self._before(comm, "all_reduce", f"{moment}/all-reduce", engine),
        ):
            self.enter_phase(moment)
            yield
        if not moment.endswith("forward"):  # activations are alive then
            self.settle(engine)
        self.note(moment, engine)
        self.enter_phase("between")

    def settle(self, engine: Any) -> None:
        """Wait until what is no longer in use has been let go of."""

    def note(self, moment: str, engine: Any) -> None:
        """What is held now."""
        if self.noting:
            self.held_bytes[moment] = claimed(engine, self.graph)[0]

    def report(self) -> dict[str, Any]:
        """Everything that was seen."""
        self.meter.moment("end")
        self.meter.close()
        return {"held_bytes": self.held_bytes, "phases": self.meter.phases, "moments": self.meter.moments}

    @contextmanager
    def _before(self, owner: Any, method: str, moment: str, engine: Any) -> Iterator[None]:
        """Note ``moment`` when ``method`` is called for the first time in here."""
        original = getattr(owner, method, None)
        if original is None:
            yield
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            setattr(owner, method, original)
            if moment.endswith("reduced"):
                self.settle(engine)
            self.note(moment, engine)
            return original(*args, **kwargs)

        setattr(owner, method, watched)
        yield
        setattr(owner, method, original)


class Follower(Looker):
    """Besides what is held: every storage on a CPU, peaks by moment, and what belongs to no category."""

    def __init__(self) -> None:
        super().__init__(Meter(gpu=False))
        self.unexplained: dict[str, list[tuple[int, str]]] = {}
        self._storages = Storages()

    def __enter__(self) -> Follower:
        self._storages.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._storages.__exit__(*exception)

    def enter_phase(self, phase: str) -> None:
        """Peaks from here on are this moment's."""
        self._storages.enter_phase(phase)

    def built(self, model: Any) -> None:
        """Weights come from a file, whose tensors no operator makes; an earlier job may have made libraries' tables."""
        parameters = list(model.parameters())
        self._storages.adopt(getattr(p, "ds_tensor", p.data) for p in parameters)
        self._storages.adopt(model.buffers())
        self._storages.adopt(library_tensors())

    def settle(self, engine: Any) -> None:
        """Wait until gloo's threads have let go of the tensors of the last collectives, on every rank."""
        seen = claimed(engine, self.graph)[1]
        for _ in range(SETTLING_ROUNDS):
            held = any(TOKENS not in shape for _, shape in self._storages.besides(seen))  # tokens stay
            anywhere = torch.tensor(float(held))
            comm.all_reduce(anywhere)  # every rank takes as many rounds; a collective makes gloo let go of the last
            if not anywhere:
                return
            time.sleep(SETTLING_S)

    def note(self, moment: str, engine: Any) -> None:
        """What is held now, and what else is alive."""
        self.held_bytes[moment], seen = claimed(engine, self.graph)
        self.unexplained[moment] = self._storages.besides(seen)

    def report(self) -> dict[str, Any]:
        """Everything that was seen."""
        return {
            "held_bytes": self.held_bytes,
            "unexplained": self.unexplained,
            "peak_bytes": self._storages.peak_bytes,
        }
