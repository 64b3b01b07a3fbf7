"""Seconds per FLOP of one multiplication by its shape, and of attention by its length."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from ..efficiency import value
from .rates import Rates

TILES = (
    (256, 128),
    (128, 256),
    (128, 128),
    (64, 128),
    (128, 64),
    (32, 64),
    (64, 32),
    (16, 128),
    (128, 16),
)  # rows, columns of one output tile


def matmul_share(shape: tuple[int, int, int], *, multiprocessors: int, half_k: float) -> float:
    """Share of a large multiplication's rate that (m, n, k) reaches with the best tile.

    Formula: k / (k + half_k) * max over tiles of: share(tile) * m n / (waves * multiprocessors * tile's area), with
    waves = ceil(ceil(m / rows) ceil(n / columns) / multiprocessors): partly empty tiles, prologue and epilogue of each
    tile's loop over k, and a last wave of tiles that leaves multiprocessors idle.

    >>> round(matmul_share((8192, 8192, 8192), multiprocessors=128, half_k=0), 3)  # 2048 tiles, 16 full waves
    1.0
    >>> round(matmul_share((128, 128, 1024), multiprocessors=128, half_k=0), 4)  # 8 tiles of 32 x 64 at half a rate
    0.0312
    """
    m, n, k = shape
    return k / (k + half_k) * max(_tiled(m, n, rows, columns, multiprocessors) for rows, columns in TILES)


def _tiled(m: int, n: int, rows: int, columns: int, multiprocessors: int) -> float:
    waves = ceil(ceil(m / rows) * ceil(n / columns) / multiprocessors)
    filled = m * n / (waves * multiprocessors * rows * columns)
    return filled * _tile_share(rows, columns)


@lru_cache(maxsize=16)
def _tile_share(rows: int, columns: int) -> float:
    return value("matmul_tile", f"{max(rows, columns)}x{min(rows, columns)}")


def alignment_share(shape: tuple[int, int, int], element_bytes: float) -> float:
    """Share of the rate left where rows of the operands or of the result do not begin at whole lines of memory.

    Tensor cores need rows of a multiple of 16 bytes; on A100 and later they are fastest from multiples of 128.

    Source:
        NVIDIA Deep Learning Performance guide, Matrix Multiplication, "Tensor Core requirements".

    >>> alignment_share((4096, 4096, 4096), 2), alignment_share((4096, 1800, 4096), 2) < 1
    (1.0, True)
    """
    _, n, k = shape
    rows = [
        size * element_bytes for size in (n, k) if size * element_bytes >= LINE_BYTES
    ]  # shorter ones are read whole
    if all(row % LINE_BYTES == 0 for row in rows):
        return 1.0
    aligned = all(row % VECTOR_BYTES == 0 for row in rows)
    return value("matmul_alignment", "vector" if aligned else "none")


VECTOR_BYTES, LINE_BYTES = 16, 128


@lru_cache(maxsize=65536)
def matmul_s_per_flop(rate: Rates, shape: tuple[int, int, int], bits: int = 0) -> float:
    """Seconds per FLOP of one shape: the slower of the arithmetic and of reading and writing the three matrices."""
    m, n, k = shape
    share = matmul_share(shape, multiprocessors=rate.multiprocessors, half_k=rate.half_k)
    operand = bits / 8 if bits else rate.element_bytes
    traffic = (operand * (m * k + k * n) + rate.element_bytes * m * n) / (2.0 * m * n * k)
    peak = dict(rate.low_flop_per_s).get(bits, rate.matmul_flop_per_s) * alignment_share(shape, rate.element_bytes)
    return max(1.0 / (peak * share), traffic / rate.memory_bytes_per_s)


def attention_s_per_flop(rate: Rates, shape: tuple[int, int, int] | None) -> float:
    """Seconds per FLOP of the flash kernel, slower where queries meet few keys: keys / (keys + half_keys)."""
    share = 1.0 if shape is None else shape[1] / (shape[1] + rate.half_keys)
    return 1.0 / (rate.attention_flop_per_s * share)
