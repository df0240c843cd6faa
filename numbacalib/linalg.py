"""Damping and factors of the GPTQ Hessian: SciPy's LAPACK on the host.

With ``J`` the reversal of order, ``J H J = L L^T`` gives ``H = R R^T`` with ``R = J L J`` upper
triangular, so that ``U = R^-1`` is the upper factor of the inverse, ``H^-1 = U^T U``. One Cholesky
factorisation and one triangular inverse replace the usual potrf, potri, potrf.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.backend import backend_of
from numbacalib.runtime.blas import cholesky_lower, invert_triangle
from numbacalib.runtime.finite import require_finite
from numbacalib.runtime.jit import kernel


class HessianFactor(NamedTuple):
    """Cholesky factor of a damped Hessian."""

    upper: NDArray
    """``R`` [K, K], upper triangular, C-contiguous, ``H + damping = R R^T``."""
    dead: NDArray
    """Channels that no input ever excited, ``H[j, j] == 0``, bool [K]."""
    damping: float
    """What was added to the diagonal of the live channels."""


def gptq_inverse_hessian(hessian: Any, *, percdamp: float = 0.01) -> NDArray:
    """Upper Cholesky factor ``U`` of the inverse of the damped Hessian, ``H^-1 = U^T U``.

    ``percdamp * mean(diag H)`` is added to the diagonal; a dead channel (``H[j, j] == 0``) gets 1
    there, and its weights are to be set to 0.

    Parameters
    ----------
    hessian : array [K, K], float16, bfloat16, float32 or float64
        Symmetric positive semi-definite; one triangle of it is read.
    percdamp : float, default 0.01
        Damping as a fraction of the mean of the diagonal, not negative.

    Returns
    -------
    array [K, K], float32 (float64 for a float64 Hessian)
        Upper triangular, C-contiguous.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the damped matrix is not positive definite: says the damping used, the smallest diagonal
        entry and what to try.
    ValueError
        If the matrix is not square, empty or not finite, or `percdamp` is negative.
    """
    factor = factor_hessian(hessian, percdamp=percdamp).upper
    invert_triangle(factor, lower=False)
    return factor


def factor_hessian(hessian: Any, *, percdamp: float = 0.01) -> HessianFactor:
    """Damp a Hessian and factor it, ``H + damping = R R^T``; see `gptq_inverse_hessian`."""
    if backend_of(hessian=hessian) == "gpu":
        raise NotImplementedError("hessian: no GPU factorisation yet: pass a NumPy array")
    size, _ = checks.matrix("hessian", hessian, ("K", "K"))
    checks.matrix("hessian", hessian, (size, size))
    percdamp = checks.finite_number("percdamp", percdamp)
    if percdamp < 0:
        raise ValueError(f"percdamp: expected a number not below 0, got {percdamp}")
    require_finite("hessian", hessian)
    dtype = checks.result_dtype(hessian)
    diagonal = np.diagonal(hessian).astype(np.float64)
    damping = percdamp * float(diagonal.mean())
    dead = diagonal == 0

    matrix = np.array(hessian[::-1, ::-1], dtype=dtype, order="C")
    np.fill_diagonal(matrix, np.where(dead, 1.0, diagonal + damping)[::-1])
    if minor := cholesky_lower(matrix):
        raise np.linalg.LinAlgError(
            f"hessian: not positive definite at channel {size - minor} with damping {damping:.3g} "
            f"(percdamp {percdamp:g}), smallest diagonal entry {diagonal.min():.3g}: "
            "raise percdamp, or calibrate on more tokens than channels"
        )
    _reverse_lower(matrix)
    return HessianFactor(matrix, dead, damping)


@kernel
def _reverse_lower(matrix):
    """Reverse both axes of a lower triangular matrix in place and clear the other triangle.

    Row i becomes row K-1-i read from right to left: rows trade places in pairs. Split: one task a
    pair.
    """
    size = len(matrix)
    for i in prange((size + 1) // 2):
        k = size - 1 - i
        row, other = matrix[i, : i + 1].copy(), matrix[k, : k + 1].copy()
        matrix[i, :i] = 0
        matrix[i, i:] = other[::-1]
        matrix[k, :k] = 0
        matrix[k, k:] = row[::-1]
