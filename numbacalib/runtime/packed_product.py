"""Products of whole matrices: the same sums in the same order at any number of threads.

BLAS divides a product by the number of threads, and a thread's share decides which inner loops run and so
how sums are rounded. Here a result is cut into tiles. A worker packs the parts of both operands that a tile
needs slice by slice, and `add_product` multiplies the slices; a sum has the same order wherever its tile
begins and however large it is, so that ``x^T x`` is also exactly symmetric. Operands have any strides and
are not copied as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.packing import pack
from numbacalib.runtime.tasks import fetch_add
from numbacalib.runtime.threads import thread_count
from numbacalib.runtime.tile_product import COLUMNS, DEPTH, LANES, add_product
from numbacalib.spec.hessian import updated

LARGE = 480 // COLUMNS * COLUMNS, 480 // LANES * LANES
"""Rows and columns of a tile of the result: whole column panels, and whole row panels."""
SMALL = 240 // COLUMNS * COLUMNS, 256 // LANES * LANES
"""The same of results that would be too few large tiles; operands are packed about twice as often."""
TASKS = 16
"""Least large tiles for a thread: the last ones leave threads idle."""
PITCH = DEPTH + 4
"""Rows from a panel to the next: a power of two apart, panels would evict each other from the cache."""


class _Operand(NamedTuple):
    """A matrix as flat, read-only memory, so that a kernel is compiled once."""

    memory: NDArray
    steps: tuple[int, int]
    """Elements between neighbors along the result, and along the sum."""


def multiply(x: NDArray, weight: NDArray, out: NDArray) -> None:
    """Set `out` [N, M] to ``x weight^T``, x [N, K], weight [M, K]; `out` is C-contiguous."""
    _run(_operand(x), _operand(weight), x.shape[1], (1.0, 0.0), out, upper=False)


def product(left: NDArray, right: NDArray) -> NDArray:
    """Return ``left right`` in the dtype of `left`, to which `right` is converted as it is packed."""
    out = np.empty((len(left), right.shape[1]), left.dtype)
    multiply(left, right.T, out)
    return out


def add_moment(out: NDArray, left: NDArray, right: NDArray, factor: float, keep: float) -> None:
    """Set `out` [K, L] to ``keep * out + factor * left^T right``, left [N, K], right [N, L].

    `out` is C-contiguous; operands are read in their own dtype, 16-bit floats too.
    """
    _run(_operand(left.T), _operand(right.T), len(left), (factor, keep), out, upper=False)


def add_square(matrix: NDArray, x: NDArray, alpha: float, beta: float) -> None:
    """Set the upper triangle of `matrix` [K, K] to ``beta * matrix + alpha * x^T x``, x [B, K].

    `matrix` is C-contiguous; x is read in its own dtype. The lower triangle is undefined in tiles on the
    diagonal.
    """
    operand = _operand(x.T)
    _run(operand, operand, len(x), (alpha, beta), matrix, upper=True)


def _operand(matrix: NDArray) -> _Operand:
    """Present a matrix of any strides; it is copied only if a stride is negative or splits elements."""
    matrix = carrier(matrix)
    size = matrix.itemsize
    if any(stride < 0 or stride % size for stride in matrix.strides):
        matrix = np.ascontiguousarray(matrix)
    step, depth_step = (stride // size for stride in matrix.strides)
    count, depth = matrix.shape
    length = (count - 1) * step + (depth - 1) * depth_step + 1 if matrix.size else 0
    memory = as_strided(matrix, (length,), (size,), writeable=False)
    return _Operand(memory, (step, depth_step))


def _run(
    left: _Operand,
    right: _Operand,
    depth: int,
    factors: tuple[float, float],
    out: NDArray,
    *,
    upper: bool,
) -> None:
    """Run `_multiply` on all threads."""
    alpha_beta = out.dtype.type(factors[0]), out.dtype.type(factors[1])
    tile = LARGE if _tiles(out, LARGE) >= TASKS * thread_count() else SMALL
    _multiply(_tiles(out, tile), tuple(left), tuple(right), depth, alpha_beta, upper, tile, out)


def _tiles(out: NDArray, tile: tuple[int, int]) -> int:
    """Return the number of tiles of a result."""
    return -(-out.shape[0] // tile[0]) * -(-out.shape[1] // tile[1])


@task_kernel
def _multiply(counter, left, right, depth, factors, upper, tile, out):
    """Split: workers take tiles, those of the same rows one after the other."""
    tile_rows, tile_width = tile
    rows, row_steps = left
    columns, column_steps = right
    alpha, beta = factors
    count, width = out.shape
    across = -(-width // tile_width)
    panels = (
        min(tile_width // LANES, -(-width // LANES)),
        min(tile_rows // COLUMNS, -(-count // COLUMNS)),
    )
    row_panels = np.empty((panels[0], PITCH, LANES), out.dtype)
    column_panels = np.empty((panels[1], PITCH, COLUMNS), out.dtype)
    sums = np.empty((panels[0], panels[1] * COLUMNS, LANES), out.dtype)
    task = fetch_add(counter)
    while task < -(-count // tile_rows) * across:
        top, first = task // across * tile_rows, task % across * tile_width
        height, length = min(tile_rows, count - top), min(tile_width, width - first)
        if not upper or first + length > top:
            own = row_panels[: -(-length // LANES)]
            other = column_panels[: -(-height // COLUMNS)]
            sums[:] = 0
            for begin in range(0, depth, DEPTH):
                deep = min(DEPTH, depth - begin)
                at = first * column_steps[0] + begin * column_steps[1]
                pack(columns, at, column_steps, length, LANES, own[:, :deep])
                at = top * row_steps[0] + begin * row_steps[1]
                pack(rows, at, row_steps, height, COLUMNS, other[:, :deep])
                for p in range(len(own)):
                    # panels below the diagonal are left out
                    end = first + (p + 1) * LANES - top if upper else height
                    wanted = other[: max(0, -(-end // COLUMNS))]
                    add_product(own[p : p + 1, :deep], wanted, np.int64(0), sums[p : p + 1])
            _store(sums, alpha, beta, out[top : top + height, first : first + length])
        task = fetch_add(counter)


@scalar
def _store(sums, alpha, beta, target):
    """Store ``alpha * sums + beta * target``; the target's old values are ignored if beta is 0."""
    height, width = target.shape
    for i in range(height):
        for p in range(-(-width // LANES)):
            row, total = target[i, p * LANES : (p + 1) * LANES], sums[p, i]
            if beta == 0:
                for r in range(len(row)):
                    row[r] = alpha * total[r]
            else:
                for r in range(len(row)):
                    row[r] = updated(row[r], total[r], alpha, beta)
