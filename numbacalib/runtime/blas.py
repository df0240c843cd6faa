"""The BLAS and LAPACK calls that NumPy does not offer, through SciPy, on row-major matrices.

LAPACK is column-major: the transpose of a C-contiguous matrix is the same memory, so the upper
triangle of our matrix is LAPACK's lower one and no copy is made. All products of a calculation go
through SciPy's BLAS, since NumPy's is another pool of threads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

from numbacalib.runtime.threads import load_scipy


def add_product(target: NDArray, left: NDArray, right: NDArray) -> None:
    """Add ``left @ right``, [M, k] by [k, N], to `target` [M, N], all of one dtype.

    Rows are contiguous and may lie any distance apart, so that slices of columns need no copy, which
    SciPy's wrappers would make.
    """
    (rows, inner), columns = left.shape, right.shape[1]
    if 0 in (rows, inner, columns):
        return
    routine, real = _gemm(target.dtype.char)
    step = target.itemsize
    by_reference = (
        ctypes.byref(ctypes.c_int(size))
        for size in (columns, rows, inner, *(a.strides[0] // step for a in (right, left, target)))
    )
    n, m, k, *leading = by_reference
    one = ctypes.byref(real(1.0))
    # Column-major BLAS sees the transposes: target^T += right^T left^T.
    routine(
        b"N", b"N", n, m, k, one, right.ctypes.data, leading[0], left.ctypes.data, leading[1], one,
        target.ctypes.data, leading[2],
    )  # fmt: skip


def product(left: NDArray, right: NDArray) -> NDArray:
    """Return ``left @ right``; see `add_product`."""
    target = np.zeros((left.shape[0], right.shape[1]), left.dtype)
    add_product(target, left, right)
    return target


@cache
def _gemm(char: str) -> tuple[Any, type]:
    """SciPy's ``sgemm`` or ``dgemm`` as a C function, and the C type of its scalars."""
    load_scipy()
    name, real = {"f": ("sgemm", ctypes.c_float), "d": ("dgemm", ctypes.c_double)}[char]
    address = get_cython_function_address("scipy.linalg.cython_blas", name)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(address), real


def syrk(matrix: NDArray, x: NDArray, alpha: float, beta: float) -> None:
    """Set the upper triangle of `matrix` [K, K] to ``beta * matrix + alpha * x^T x``, x [B, K].

    `matrix` is C-contiguous, `x` C- or F-contiguous, both of one dtype. Nothing is copied.
    """
    load_scipy()
    from scipy.linalg import blas

    routine = blas.ssyrk if matrix.dtype == np.float32 else blas.dsyrk
    if x.flags.c_contiguous:
        routine(alpha, x.T, beta=beta, c=matrix.T, trans=0, lower=1, overwrite_c=1)
    else:
        routine(alpha, x, beta=beta, c=matrix.T, trans=1, lower=1, overwrite_c=1)


def cholesky_lower(matrix: NDArray) -> int:
    """Overwrite the lower triangle of a C-contiguous matrix by its Cholesky factor L, ``A = L L^T``.

    Returns 0, or the order of the leading minor that is not positive definite. The upper triangle
    keeps what it held.
    """
    load_scipy()
    from scipy.linalg import lapack

    routine = lapack.spotrf if matrix.dtype == np.float32 else lapack.dpotrf
    _, info = routine(matrix.T, lower=0, overwrite_a=1, clean=0)
    return info


def invert_triangle(matrix: NDArray, *, lower: bool) -> None:
    """Overwrite one triangle of a C-contiguous matrix by the inverse of that triangle."""
    load_scipy()
    from scipy.linalg import lapack

    routine = lapack.strtri if matrix.dtype == np.float32 else lapack.dtrtri
    _, info = routine(matrix.T, lower=int(not lower), overwrite_c=1)
    if info:
        raise np.linalg.LinAlgError(f"triangular factor is singular at index {info - 1}")
