"""Damping and factors of the GPTQ Hessian.

With ``J`` the reversal of order, ``J H J = L L^T`` gives ``H = R R^T`` with ``R = J L J`` upper
triangular, so that ``U = R^-1`` is the upper factor of the inverse, ``H^-1 = U^T U``. One Cholesky
factorisation and one triangular inverse replace the usual potrf, potri, potrf.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.runtime import checks
from numbacalib.runtime.backend import call
from numbacalib.runtime.finite import require_finite


class HessianFactor(NamedTuple):
    """Cholesky factor of a damped Hessian."""

    upper: Any
    """``R`` [K, K], upper triangular, C-contiguous, ``H + damping = R R^T``."""
    dead: Any
    """Channels that no input ever excited, ``H[j, j] == 0``, bool [K]."""
    dead_count: int
    damping: float
    """What was added to the diagonal of the live channels."""


def gptq_inverse_hessian(hessian: Any, *, percdamp: float = 0.01, stream: Any = None) -> Any:
    """Upper Cholesky factor ``U`` of the inverse of the damped Hessian, ``H^-1 = U^T U``.

    ``percdamp * mean(diag H)`` is added to the diagonal; a dead channel (``H[j, j] == 0``) gets 1
    there, and its weights are to be set to 0.

    Parameters
    ----------
    hessian : array [K, K], float16, bfloat16, float32 or float64
        Symmetric positive semi-definite; one triangle of it is read.
    percdamp : float, default 0.01
        Damping as a fraction of the mean of the diagonal, not negative.
    stream : CUDA stream, optional
        Where to launch; the default stream if None. CUDA arrays only.

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
    with call(__name__, stream, hessian=hessian) as (_, hessian):
        factor = factor_hessian(hessian, percdamp=percdamp)
        with call(__name__, upper=factor.upper) as (kernels, upper):
            return kernels.invert(upper)


def factor_hessian(
    hessian: Any, *, percdamp: float = 0.01, dtype: DTypeLike | None = None
) -> HessianFactor:
    """Damp a Hessian and factor it, ``H + damping = R R^T``; see `gptq_inverse_hessian`.

    `dtype` is float32 or float64, by default float64 for a float64 Hessian alone.
    """
    with call(__name__, hessian=hessian) as (kernels, hessian):
        size, _ = checks.matrix("hessian", hessian, ("K", "K"))
        checks.matrix("hessian", hessian, (size, size))
        percdamp = checks.finite_number("percdamp", percdamp)
        if percdamp < 0:
            raise ValueError(f"percdamp: expected a number not below 0, got {percdamp}")
        require_finite("hessian", hessian)
        dtype = checks.result_dtype(hessian) if dtype is None else np.dtype(dtype)
        return kernels.factor(hessian, percdamp, dtype)


def require_positive_definite(
    minor: int, size: int, percdamp: float, damping: float, least: float
) -> None:
    """Raise if a reversed matrix has a leading minor, of order `minor`, that is not positive."""
    if minor:
        raise np.linalg.LinAlgError(
            f"hessian: not positive definite at channel {size - minor} with damping {damping:.3g} "
            f"(percdamp {percdamp:g}), smallest diagonal entry {least:.3g}: "
            "raise percdamp, or calibrate on more tokens than channels"
        )
