"""Float32 matrices as pairs of bfloat16, high and low, for products on tensor cores.

The three largest products of two pairs keep 16 bits of each factor. bfloat16 has float32's range, so no
scaling is needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numbacalib.runtime import blas_gpu, device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import narrow, widen
from numbacalib.runtime.launch import MOST_BLOCKS, launch

THREADS = 128
ROWS = 8
"""Rows that a thread reads before it writes the first."""


class Pair(NamedTuple):
    """Two bfloat16 matrices [E, M, K] in carriers, whose sum approximates a float32 matrix."""

    high: Any
    low: Any

    @classmethod
    def of(cls, matrix: Any) -> Pair:
        """Return a pair [1, M, K] for a float32 matrix."""
        pair = cls.empty((1, *matrix.shape))
        pair.fill(matrix.reshape(1, *matrix.shape))
        return pair

    @classmethod
    def empty(cls, shape: tuple[int, int, int]) -> Pair:
        """Return an uninitialized pair."""
        both = device.empty((2, *shape), np.int16)
        return cls(both[0], both[1])

    def columns(self, begin: int, end: int) -> Pair:
        """Return some columns, in the same memory."""
        return Pair(*(part[:, :, begin:end] for part in self))

    def rows(self, begin: int, end: int) -> Pair:
        """Return some rows, in the same memory."""
        return Pair(*(part[:, begin:end] for part in self))

    def fill(self, matrices: Any) -> None:
        """Split float32 matrices [E, M, K]."""
        count, rows, columns = matrices.shape
        blocks = -(-columns // THREADS), min(-(-rows // ROWS), MOST_BLOCKS), count
        launch(_split, blocks, THREADS, matrices, *self)


def add_products(
    left: Pair, right: Pair, out: Any, *, factor: float = 1.0, transposed: bool = False
) -> None:
    """Add products as `blas_gpu.add_products` does, `out` in float32; the smallest products come first."""
    for a, b in (left.high, right.low), (left.low, right.high), (left.high, right.high):
        blas_gpu.add_products(a, b, out, factor=factor, transposed=transposed)


@cuda.jit
def _split(matrices, high, low):
    """Threads: one per column and `ROWS` rows; blocks stride over the rows."""
    e = cuda.blockIdx.z
    j = cuda.grid(1)
    rows, columns = matrices.shape[1:]
    values = cuda.local.array(ROWS, np.float32)
    if j < columns:
        for top in range(np.int64(cuda.blockIdx.y) * ROWS, rows, cuda.gridDim.y * ROWS):
            for k in range(ROWS):
                values[k] = matrices[e, min(top + k, rows - 1), j]
            for k in range(ROWS):
                if top + k < rows:
                    nearest = narrow(values[k], high[e, top + k, j])
                    high[e, top + k, j] = nearest
                    low[e, top + k, j] = narrow(values[k] - widen(nearest), high[e, top + k, j])
