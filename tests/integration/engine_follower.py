"""Follows one engine through a step: what every category holds at each moment, the peaks, and what nothing explains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed import comm

from .engine_memory import PeakTracker, claimed

SETTLING_ROUNDS, SETTLING_S = 10, 0.002
SCALAR_BYTES = 8  # step counters, loss scales, norms: single elements are not followed


class Follower(PeakTracker):
    """Peaks by moment; what is held at the end of each, by category; and the storages that belong to no category."""

    def __init__(self) -> None:
        super().__init__()
        self.held_bytes: dict[str, dict[str, int]] = {}
        self.unexplained: dict[str, list[tuple[int, str]]] = {}
        self._shapes: dict[int, str] = {}

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
        """Wait until gloo's threads have let go of the tensors of the last collectives, on every rank."""
        seen = claimed(engine)[1]
        for _ in range(SETTLING_ROUNDS):
            held = any("int64" not in self._shapes[key] for key in self._live if key not in seen)  # tokens stay
            anywhere = torch.tensor(float(held))
            comm.all_reduce(anywhere)  # every rank takes as many rounds; a collective makes gloo let go of the last
            if not anywhere:
                return
            time.sleep(SETTLING_S)

    def note(self, moment: str, engine: Any) -> None:
        """What is held now."""
        self.held_bytes[moment], seen = claimed(engine)
        rest = [(size, self._shapes[key]) for key, (size, _) in self._live.items() if key not in seen]
        self.unexplained[moment] = sorted(rest)

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

    def _made(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() <= SCALAR_BYTES:
            return
        if storage._cdata not in self._live:
            self._shapes[storage._cdata] = f"{tuple(tensor.shape)} {tensor.dtype}"
        super()._made(tensor)
