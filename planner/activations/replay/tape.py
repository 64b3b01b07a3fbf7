"""A tape that counts the bytes a program keeps alive, forward and backward, without computing anything.

The layers of ``decoders`` are written as transformers writes them; this module gives their tensors the lifetimes that
Python and autograd would give them. A storage counts from the moment it is made until the last variable, saved tensor
or gradient that refers to it is gone. What a moment needs is a polynomial in the batch, packed into one integer, so
that one replay answers for every sequence length and micro-batch.

Source:
    torch 2.13.0 torch/csrc/autograd/engine.cpp: ready nodes run newest first (sequence number); a node's incoming
    gradients and saved tensors live until it has returned; two gradients of one tensor are summed into a third.
    torch/utils/checkpoint.py ``_checkpoint_without_reentrant_generator``: recomputation starts when the first saved
    tensor is asked for and stops as soon as the last one exists again.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from ..kept import Kept

FIELD_BITS = 64  # of one coefficient; no layer holds 2^64 bytes per token
TOKEN = 1 << FIELD_BITS
PAIR = 1 << (2 * FIELD_BITS)
FIELD = TOKEN - 1


def packed(amount: Kept) -> int:
    """One integer for a polynomial.

    >>> unpacked(packed(Kept(per_token=10, per_pair=2, fixed=3)) + packed(Kept(per_token=1)))
    Kept(per_token=11, per_pair=2, fixed=3)
    """
    return amount.per_pair * PAIR + amount.per_token * TOKEN + amount.fixed


def unpacked(amount: int) -> Kept:
    """The polynomial of one integer."""
    return Kept((amount >> FIELD_BITS) & FIELD, amount >> (2 * FIELD_BITS), amount & FIELD)


class Layout(Enum):
    """How a tensor of heads lies in memory."""

    TOKENS = "tokens"  # (b, s, a, d): as projections write it; a transposed view for attention
    HEADS = "heads"  # (b, a, s, d)
    EXPANDED = "expanded"  # one key-value head seen by all


class Saving(Enum):
    """What becomes of tensors that autograd saves."""

    KEEP = "keep"
    DROP = "drop"  # a checkpointed layer's first forward pass: only their number is remembered
    FILL = "fill"  # its recomputation


class Storage:
    """Bytes alive on a tape until nothing refers to them."""

    __slots__ = ("size", "tape")

    def __init__(self, tape: Tape, size: int) -> None:
        self.tape, self.size = tape, size
        tape.live += size
        tape.moments.add(tape.live)

    def __del__(self) -> None:
        self.tape.live -= self.size


class Node:
    """One operation of the backward graph."""

    __slots__ = ("edges", "order", "outputs", "rule", "saved")

    def __init__(self, order: int, edges: tuple[Edge, ...], rule: Rule, outputs: int = 1) -> None:
        self.order, self.edges, self.rule, self.outputs = order, edges, rule, outputs
        self.saved: list[Storage | Slot] = []


@dataclass(slots=True)
class Slot:
    """Where a dropped tensor will be found again; a parameter's stays empty."""

    storage: Storage | None = None


@dataclass(slots=True)
class Tensor:
    """A view of a storage: ``numel`` packed elements of ``element`` bytes; ``node`` made it, if it needs a gradient."""

    storage: Storage
    numel: int
    element: int
    node: Node | None = None
    index: int = 0
    layout: Layout = Layout.TOKENS

    @property
    def edge(self) -> Edge:
        """Where this tensor's gradient goes."""
        return None if self.node is None else (self.node, self.index)


Edge = tuple[Node, int] | None
Gradients = list[Tensor | None]
Late = Callable[[], Tensor]  # what the engine makes of a result once the operation has let go of what it had saved
Rule = Callable[["Tape", Gradients, Sequence[bool]], Sequence[Tensor | Late | None]]


class _RecomputedError(Exception):
    """The last saved tensor exists again."""


def _no_rule(tape: Tape, gradients: Gradients, wanted: Sequence[bool]) -> Gradients:
    return []


Result = TypeVar("Result")
LEAF = (Node(-1, (), _no_rule), 0)  # edge to a trained weight: its gradient is counted elsewhere


class Tape:
    """Live bytes, and every level they reached since the last look."""

    def __init__(self) -> None:
        self.live = 0
        self.moments: set[int] = set()
        self.saving = Saving.KEEP
        self._slots: list[Slot] = []
        self._filled = 0
        self._order = 0
        self._again: Callable[[], object] | None = None

    def levels(self) -> frozenset[int]:
        """Levels reached since the last call."""
        seen, self.moments = self.moments, set()
        return frozenset(seen)

    def new(self, numel: int, element: int, node: Node | None = None, layout: Layout = Layout.TOKENS) -> Tensor:
        """A fresh tensor."""
        return Tensor(Storage(self, numel * element), numel, element, node, 0, layout)

    def source(self, numel: int, element: int, *, graded: bool) -> Tensor:
        """An input; ``graded``: the backward pass ends in its gradient."""
        return self.new(numel, element, Node(0, (), _no_rule) if graded else None)

    def node(
        self, edges: Sequence[Edge], rule: Rule, saved: Sequence[Tensor | None] = (), outputs: int = 1
    ) -> Node | None:
        """A backward operation, or None where nothing needs a gradient. ``saved`` None stands for a parameter."""
        if all(edge is None for edge in edges):
            return None
        self._order += 1
        node = Node(self._order, tuple(edges), rule, outputs)
        for tensor in saved:
            self.save(node, tensor)
        return node

    def save(self, node: Node | None, tensor: Tensor | None) -> None:
        """Keep a tensor for a node's backward; results are saved after they are made."""
        if node is None:
            return
        if self.saving is Saving.DROP:
            slot = Slot()
            node.saved.append(slot)
            self._slots.append(slot)
            return
        if tensor is not None:
            node.saved.append(tensor.storage)
        if self.saving is Saving.FILL:
            self._fill(tensor)

    def _fill(self, tensor: Tensor | None) -> None:
        self._slots[self._filled].storage = None if tensor is None else tensor.storage
        self._filled += 1
        if self._filled == len(self._slots):
            raise _RecomputedError

    def checkpoint(self, forward: Callable[[], Result]) -> Result:
        """Run a forward pass that keeps nothing, and remember how to run it again."""
        self.saving, self._again, self._slots, self._filled = Saving.DROP, forward, [], 0
        result = forward()
        self.saving = Saving.KEEP
        return result

    def _unpack(self, entry: Storage | Slot) -> Storage | None:
        if isinstance(entry, Storage):
            return entry
        if self._again is not None:
            again, self._again = self._again, None
            self._recompute(again)
        storage, entry.storage = entry.storage, None
        return storage

    def _recompute(self, again: Callable[[], object]) -> None:
        self.saving = Saving.FILL
        with suppress(_RecomputedError):
            again()
        self.saving = Saving.KEEP
        self._slots = []

    def backward(self, edge: tuple[Node, int], gradient: list[Tensor]) -> Gradients:
        """Run every node that ``edge`` leads to; ``gradient`` is emptied, so that nobody else holds it.

        Returns:
            Gradients of the nodes without a rule's result: the layer's input.
        """
        waiting = _dependencies(edge[0])
        buffers: dict[int, Gradients] = {id(edge[0]): [None] * edge[0].outputs}
        buffers[id(edge[0])][edge[1]] = gradient.pop()
        ready = [(-edge[0].order, id(edge[0]), edge[0])]
        while ready:
            node = heapq.heappop(ready)[2]
            if not node.edges:
                return buffers.pop(id(node))
            results = self._run(node, buffers.pop(id(node)))
            for target in _accumulate(self, node, results, buffers):
                waiting[id(target)] -= 1
                if not waiting[id(target)]:
                    heapq.heappush(ready, (-target.order, id(target), target))
            node.edges = ()
        return []

    def _run(self, node: Node, gradients: Gradients) -> Gradients:
        held = [self._unpack(entry) for entry in node.saved]
        returned = list(node.rule(self, gradients, [edge is not None for edge in node.edges]))
        held.clear()  # recomputed tensors are gone before the engine casts and sums what the operation returned
        results: Gradients = []
        for place, result in enumerate(returned):
            returned[place] = None
            results.append(result() if callable(result) else result)
        gradients.clear()
        node.saved.clear()
        return results


def _dependencies(start: Node) -> dict[int, int]:
    """How many gradients each node waits for."""
    counts: dict[int, int] = {id(start): 0}
    stack = [start]
    while stack:
        for edge in stack.pop().edges:
            if edge is None or edge is LEAF:
                continue
            if id(edge[0]) not in counts:
                counts[id(edge[0])] = 0
                stack.append(edge[0])
            counts[id(edge[0])] += 1
    return counts


def _accumulate(tape: Tape, node: Node, results: Gradients, buffers: dict[int, Gradients]) -> list[Node]:
    """Hand a node's results on; a second gradient of one tensor makes a third."""
    reached: list[Node] = []
    for place, edge in enumerate(node.edges):
        if edge is None or edge is LEAF:
            continue
        result = results[place]
        results[place] = None
        target, index = edge
        buffer = buffers.setdefault(id(target), [None] * target.outputs)
        before = buffer[index]
        if before is not None and result is not None:
            buffer[index] = tape.new(before.numel, before.element, None, before.layout)
        elif result is not None:
            buffer[index] = result
        del before, result
        reached.append(target)
    return reached
