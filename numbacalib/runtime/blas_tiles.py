"""Products by BLAS in tiles: the same sums in the same order at any number of threads.

BLAS divides a product among its threads in its own way, and what a thread is given decides which of its
inner loops run, and so how sums are rounded. Here the division is ours and depends on the shape alone:
each tile is a product that one thread does by itself.
"""

from __future__ import annotations

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from numbacalib.runtime.blas import routine, single_threaded
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import LOWER, NORMAL, call_fortran, claim

TILE = 256
"""Rows and columns of a result that are a task."""
TRANSPOSED = np.uint8(ord("T"))


def multiply(x: NDArray, weight: NDArray, out: NDArray) -> None:
    """Set `out` [N, M] to ``x weight^T``, x [N, K], weight [M, K]: C-contiguous and of one dtype."""
    with single_threaded():
        counter = np.zeros(1, np.int64)
        gemm = routine("gemm", x.dtype)
        _multiply(get_num_threads(), gemm, rows_view(x), rows_view(weight), counter, out)


def add_square(matrix: NDArray, x: NDArray, alpha: float, beta: float) -> None:
    """Set the upper triangle of `matrix` [K, K] to ``beta * matrix + alpha * x^T x``, x [B, K].

    `matrix` is C-contiguous, `x` C- or F-contiguous, both of one dtype. Nothing is copied. Of the lower
    triangle, tiles on the diagonal keep what they held.
    """
    count, size = x.shape
    rows = x.flags.c_contiguous
    # column-major BLAS sees the transpose of rows; a column begins where the row before it ends
    strides = (1, size) if rows else (count, count)
    letters = (NORMAL, TRANSPOSED) if rows else (TRANSPOSED, NORMAL)
    factors = matrix.dtype.type(alpha), matrix.dtype.type(beta)
    routines = routine("gemm", x.dtype), routine("syrk", x.dtype)
    with single_threaded():
        counter = np.zeros(1, np.int64)
        memory = x.reshape(-1, order="C" if rows else "F")
        _add_square(
            get_num_threads(), routines, memory, count, strides, letters, factors, counter, matrix
        )


@task_kernel
def _multiply(gemm, x, weight, counter, out):
    """Split: workers claim tiles, those of the same rows of `weight` one after the other."""
    count, size = x.shape
    width = len(weight)
    one, zero = out.dtype.type(1), out.dtype.type(0)
    across = -(-count // TILE)
    tasks = across * -(-width // TILE)
    task = claim(counter)
    while task < tasks:
        left, top = task // across * TILE, task % across * TILE
        columns, rows = min(TILE, width - left), min(TILE, count - top)
        call_fortran(
            gemm,
            (
                TRANSPOSED, NORMAL, columns, rows, size, one, weight[left:], size, x[top:], size,
                zero, out[top:, left:], width,
            ),
        )  # fmt: skip
        task = claim(counter)


@task_kernel
def _add_square(routines, x, count, strides, letters, factors, counter, matrix):
    """Split: workers claim tiles of the upper triangle, column by column of tiles."""
    gemm, syrk = routines
    column, step = strides
    first, second = letters
    alpha, beta = factors
    size = len(matrix)
    across = -(-size // TILE)
    task = claim(counter)
    before = np.int64(0)
    for block in range(across):
        left = block * TILE
        columns = min(TILE, size - left)
        while task <= before + block:
            top = (task - before) * TILE
            target, right = matrix[top:, left:], x[left * column :]
            if top == left:
                call_fortran(
                    syrk,
                    (
                        LOWER, first, columns, count, alpha, right, step, beta, target, size,
                    ),
                )  # fmt: skip
            else:
                call_fortran(
                    gemm,
                    (
                        first, second, columns, TILE, count, alpha, right, step,
                        x[top * column :], step, beta, target, size,
                    ),
                )  # fmt: skip
            task = claim(counter)
        before += block + 1
