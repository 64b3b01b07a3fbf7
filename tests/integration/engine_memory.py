"""Notes what one engine holds after each part of a step, and the most that is alive during it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trainplan.planner.verify.follow import PeakTracker
from trainplan.planner.verify.walk import held_bytes


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
