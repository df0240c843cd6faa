"""The BLAS and LAPACK calls that NumPy does not offer, through SciPy, on row-major matrices.

LAPACK is column-major: the transpose of a C-contiguous matrix is the same memory, so the upper
triangle of our matrix is LAPACK's lower one and no copy is made. SciPy's linear algebra is imported
at the first call, since it takes as long to import as the rest of the package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def syrk(matrix: NDArray, x: NDArray, alpha: float, beta: float) -> None:
    """Set the upper triangle of `matrix` [K, K] to ``beta * matrix + alpha * x^T x``, x [B, K].

    `matrix` is C-contiguous, `x` C- or F-contiguous, both of one dtype. Nothing is copied.
    """
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
    from scipy.linalg import lapack

    routine = lapack.spotrf if matrix.dtype == np.float32 else lapack.dpotrf
    _, info = routine(matrix.T, lower=0, overwrite_a=1, clean=0)
    return info


def invert_triangle(matrix: NDArray, *, lower: bool) -> None:
    """Overwrite one triangle of a C-contiguous matrix by the inverse of that triangle."""
    from scipy.linalg import lapack

    routine = lapack.strtri if matrix.dtype == np.float32 else lapack.dtrtri
    _, info = routine(matrix.T, lower=int(not lower), overwrite_c=1)
    if info:
        raise np.linalg.LinAlgError(f"triangular factor is singular at index {info - 1}")
