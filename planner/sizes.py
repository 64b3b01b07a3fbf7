"""Looking for the largest size that holds: numbers by galloping and halving, contexts by powers of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

SHORTEST = 128  # tokens; no context below is looked at


def last(holds: Callable[[int], bool], start: int, most: int) -> int:
    """A number that holds while the next does not, between 1 and ``most``; 0 where 1 does not hold either.

    Steps from ``start``, twice as far each time, then halves the gap. Where ``holds`` is not monotone there may be
    larger ones.

    >>> last(lambda n: n <= 37, 5, 100), last(lambda n: n <= 37, 90, 100), last(lambda n: True, 5, 100)
    (37, 37, 100)
    >>> last(lambda n: False, 5, 100)
    0
    """
    low, high, step = start, start, 1
    if holds(start):
        while low < most:
            high = min(low + step, most)
            if not holds(high):
                return between(holds, low, high)
            low, step = high, step * 2
        return low
    while low > 0:
        low = max(high - step, 0)
        if low and holds(low):
            break
        if low:
            high, step = low, step * 2
    return between(holds, low, high)


def between(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Halve the gap between one that holds and one that does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def sizes(longest: int) -> Iterator[int]:
    """The longest, and every power of two below it, from the largest down.

    >>> list(sizes(600))
    [600, 512, 256, 128]
    """
    yield longest
    size = 1 << (longest.bit_length() - 1)
    while size >= SHORTEST:
        if size < longest:
            yield size
        size //= 2


def batches(batch_tokens: int, seq_len: int) -> tuple[int, ...]:
    """Sequences that keep a batch's tokens: exactly where they divide, and the nearest power of two.

    >>> batches(2**20, 4096), batches(2**20, 24 * 1024), batches(96 * 4096, 32768)
    ((256,), (32,), (12, 16))
    """
    exact = (batch_tokens // seq_len,) if batch_tokens % seq_len == 0 else ()
    return tuple(dict.fromkeys((*exact, 1 << max(0, round(math.log2(batch_tokens / seq_len))))))
