"""Triangular systems by BLAS in runs of rows: the same sums in the same order at any number of threads.

BLAS divides its work by the number of threads, and a thread's share decides which inner loops run and so
how sums are rounded. Here each run of rows is solved by one thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.blas import routine, single_threaded
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import LEFT, LOWER, NORMAL, call_fortran, fetch_add

ROWS = 256
"""Rows of a task."""
TRANSPOSED = np.uint8(ord("T"))


def solve_rows(upper: NDArray, rows: NDArray, *, transposed: bool) -> None:
    """Overwrite `rows` [M, K] by X, ``X R = rows``, or ``X R^T = rows`` with `transposed`.

    ``R`` [K, K] is upper triangular; both are C-contiguous and of one dtype.
    """
    letter = TRANSPOSED if transposed else NORMAL
    with single_threaded():
        trsm = routine("trsm", rows.dtype)
        _solve_rows(-(-len(rows) // ROWS), trsm, letter, rows_view(upper), rows)


@task_kernel
def _solve_rows(counter, trsm, letter, upper, rows):
    """Split: workers take runs of rows."""
    count, size = rows.shape
    task = fetch_add(counter)
    while task * ROWS < count:
        run = rows[task * ROWS :]
        call_fortran(
            trsm,
            (
                LEFT, LOWER, letter, NORMAL, size, min(ROWS, len(run)), rows.dtype.type(1), upper, size,
                run, size,
            ),
        )  # fmt: skip
        task = fetch_add(counter)
