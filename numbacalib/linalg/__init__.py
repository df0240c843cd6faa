"""Damping and factors of the GPTQ Hessian.

With ``J`` the reversal of order, ``J H J = L L^T`` gives ``H = R R^T`` with ``R = J L J`` upper
triangular, so that ``U = R^-1`` is the upper factor of the inverse, ``H^-1 = U^T U``. One Cholesky
factorisation and one triangular inverse replace the usual potrf, potri, potrf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.linalg import cpu
from numbacalib.linalg.factors import HessianFactors
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import call
from numbacalib.runtime.finite import require_finite


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.linalg import gpu

    return gpu


def gptq_inverse_hessian(hessian: ArrayT, *, percdamp: float = 0.01, stream: Any = None) -> ArrayT:
    """Upper Cholesky factor ``U`` of the inverse of the damped Hessian, ``H^-1 = U^T U``.

    ``percdamp * mean(diag H)`` is added to the diagonal; a dead channel (``H[j, j] == 0``) gets 1
    there, and its weights must be set to 0.

    Parameters
    ----------
    hessian : array [K, K], float16, bfloat16, float32 or float64
        Symmetric positive semi-definite; one triangle of it is read.
    percdamp : float, default 0.01
        Damping as a fraction of the mean of the diagonal, not negative.
    stream : CUDA stream, optional
        Stream to launch on; by default the one that the matrix is made on. CUDA arrays only.

    Returns
    -------
    array [K, K], float32 (float64 for a float64 Hessian)
        Upper triangular, C-contiguous.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the damped matrix is not positive definite: the message has the damping used, the smallest
        diagonal entry and what to try.
    ValueError
        If the matrix is not square, empty or not finite, or `percdamp` is negative.

    Notes
    -----
    On the CPU, BLAS divides the inversion of a factor of more than 1024 channels among its threads, so
    that rounding may depend on their number. `gptq` needs no inverse, and gives the same bits.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib import gptq_inverse_hessian
    >>> hessian = np.array([[4, 2], [2, 3]], np.float32)
    >>> factor = gptq_inverse_hessian(hessian, percdamp=0)
    >>> np.allclose(factor.T @ factor, np.linalg.inv(hessian))
    True
    """
    with call(cpu, _gpu, stream, hessian=hessian) as (kernels, hessian):
        checks.square("hessian", hessian)
        require_finite("hessian", hessian)
        factors = factor_hessians(checks.stack_of_one(hessian), [percdamp])
        if factors.minors[0]:
            raise factors.error(0, "hessian", percdamp)
        return kernels.invert(factors.upper[0])


def factor_hessians(
    hessians: Any,
    percdamps: Sequence[float],
    *,
    dtype: DTypeLike | None = None,
    orders: Any = None,
) -> HessianFactors:
    """Damp E finite Hessians [E, K, K], each by a fraction of its mean diagonal, and factor them.

    A matrix that is not positive definite shows in `HessianFactors.minors`. `dtype` is float32 or
    float64, by default float64 for float64 Hessians alone. With `orders`, int64 [E, K], rows and columns
    of each matrix are first put into its order.
    """
    with call(cpu, _gpu, hessian=hessians, orders=orders) as (kernels, hessians, orders):
        for percdamp in percdamps:
            if checks.finite_number("percdamp", percdamp) < 0:
                raise ValueError(f"percdamp: expected a number not below 0, got {percdamp}")
        dtype = checks.result_dtype(hessians) if dtype is None else np.dtype(dtype)
        return kernels.factor(hessians, orders, percdamps, dtype)


def solve_rows(upper: Any, rows: Any) -> Any:
    """Solve ``X (R R^T) = rows`` by two triangular systems: ``rows H^-1`` without an inverse.

    Parameters
    ----------
    upper : array [K, K]
        ``R``, one of `HessianFactors.upper`.
    rows : array [M, K], C-contiguous, of the same dtype
    """
    with call(cpu, _gpu, upper=upper, rows=rows) as (kernels, upper, rows):
        return kernels.solve_rows(upper, rows)
