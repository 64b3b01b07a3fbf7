"""A family of stacks that differ in two integers only: layers checkpointed, sub-groups of the optimizer on the host.

The integer program chooses the integers; everything else about the stack is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .transform import Stack, Strategy
from .workload import Method


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """Fixed strategies plus what k and g become; None where the family has no such choice."""

    name: str
    method: Method
    zero_stage: int
    fixed: tuple[Strategy, ...]
    checkpointing: Callable[[int], Strategy] | None = None  # k, 1..L
    offload: Callable[[int], Strategy] | None = None  # g, 1..groups
    groups: int = 0  # 0: nothing to choose
    simplicity: int = 0  # how many strategies beyond plain data parallelism: fewer is simpler

    def at(self, layers: int, groups: int) -> Stack:
        """The stack for k and g."""
        chosen = self.fixed
        if self.checkpointing is not None:
            chosen += (self.checkpointing(layers),)
        if self.offload is not None:
            chosen += (self.offload(groups),)
        return Stack.of(*chosen)
