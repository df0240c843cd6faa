"""Products by BLAS in tiles: the same sums in the same order at any number of threads.

BLAS divides a product among its threads in its own way, and what a thread is given decides which of its
inner loops run, and so how sums are rounded. Here the division is ours and depends on the shape alone:
each tile is a product that one thread does by itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from numbacalib.runtime.blas import routine, single_threaded
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import LEFT, LOWER, NORMAL, call_fortran, fetch_add

TILE = 256
"""Rows and columns of a result that are a task."""
TRANSPOSED = np.uint8(ord("T"))


def multiply(x: NDArray, weight: NDArray, out: NDArray) -> None:
    """Set `out` [N, M] to ``x weight^T``, x [N, K], weight [M, K], of one dtype; `out` is C-contiguous.

    What is not C-contiguous is copied.
    """
    depth = x.shape[1]
    forms = _Form(x, depth, 1, NORMAL), _Form(weight, depth, 1, TRANSPOSED)
    _run_product(forms, depth, (1.0, 0.0), out)


def add_moment(out: NDArray, left: NDArray, right: NDArray, factor: float, keep: float) -> None:
    """Set `out` [K, L] to ``keep * out + factor * left^T right``, left [N, K], right [N, L].

    All are of one dtype, and `out` C-contiguous. What else is not is copied.
    """
    forms = _Form(left, 1, left.shape[1], TRANSPOSED), _Form(right, 1, right.shape[1], NORMAL)
    _run_product(forms, len(left), (factor, keep), out)


def product(left: NDArray, right: NDArray) -> NDArray:
    """Return ``left right`` of matrices of one dtype."""
    out = np.empty((len(left), right.shape[1]), left.dtype)
    depth = len(right)
    forms = _Form(left, depth, 1, NORMAL), _Form(right, 1, right.shape[1], NORMAL)
    _run_product(forms, depth, (1.0, 0.0), out)
    return out


def solve_rows(upper: NDArray, rows: NDArray, *, transposed: bool) -> None:
    """Overwrite `rows` [M, K] by X, ``X R = rows``, or ``X R^T = rows`` with `transposed`.

    ``R`` [K, K] is upper triangular; both are C-contiguous and of one dtype.
    """
    letter = TRANSPOSED if transposed else NORMAL
    with single_threaded():
        counter = np.zeros(1, np.int64)
        trsm = routine("trsm", rows.dtype)
        _solve_rows(get_num_threads(), trsm, letter, rows_view(upper), counter, rows)


class _Form(NamedTuple):
    """An operand as BLAS, which is column-major, takes it: a tile from result row or column i on."""

    matrix: NDArray
    step: int
    """Elements from i to i + 1: of a row, or 1 where i counts columns."""
    width: int
    """Elements of a row where `step` is 1, else not used."""
    letter: np.uint8


def _run_product(
    forms: tuple[_Form, _Form], depth: int, factors: tuple[float, float], out: NDArray
) -> None:
    """Run `_product` on all threads."""
    real = out.dtype.type
    operands = [
        # flat, read-only memory, so that a kernel is compiled once
        (rows_view(np.ascontiguousarray(matrix)).reshape(-1), step, max(step, width), letter)
        for matrix, step, width, letter in forms
    ]
    alpha_beta = real(factors[0]), real(factors[1])
    with single_threaded():
        counter = np.zeros(1, np.int64)
        gemm = routine("gemm", out.dtype)
        _product(get_num_threads(), gemm, *operands, depth, alpha_beta, counter, out)


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
def _product(gemm, left, right, depth, factors, counter, out):
    """Split: workers take tiles, those of the same columns one after the other."""
    rows, row_step, row_pitch, row_letter = left
    columns, column_step, column_pitch, column_letter = right
    alpha, beta = factors
    count, width = out.shape
    across = -(-count // TILE)
    tasks = across * -(-width // TILE)
    task = fetch_add(counter)
    while task < tasks:
        first, top = task // across * TILE, task % across * TILE
        call_fortran(
            gemm,
            (
                column_letter, row_letter, min(TILE, width - first), min(TILE, count - top), depth,
                alpha, columns[first * column_step :], column_pitch, rows[top * row_step :], row_pitch,
                beta, out[top:, first:], width,
            ),
        )  # fmt: skip
        task = fetch_add(counter)


@task_kernel
def _solve_rows(trsm, letter, upper, counter, rows):
    """Split: workers take runs of rows."""
    count, size = rows.shape
    task = fetch_add(counter)
    while task * TILE < count:
        run = rows[task * TILE :]
        call_fortran(
            trsm,
            (
                LEFT, LOWER, letter, NORMAL, size, min(TILE, len(run)), rows.dtype.type(1), upper, size,
                run, size,
            ),
        )  # fmt: skip
        task = fetch_add(counter)


@task_kernel
def _add_square(routines, x, count, strides, letters, factors, counter, matrix):
    """Split: workers take tiles of the upper triangle, column by column of tiles."""
    gemm, syrk = routines
    column, step = strides
    first, second = letters
    alpha, beta = factors
    size = len(matrix)
    across = -(-size // TILE)
    task = fetch_add(counter)
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
            task = fetch_add(counter)
        before += block + 1
