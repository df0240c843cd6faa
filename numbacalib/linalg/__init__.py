"""Damping and factors of the GPTQ Hessian.

With ``J`` the reversal of order, ``J H J = L L^T`` gives ``H = R R^T`` with ``R = J L J`` upper
triangular, so that ``U = R^-1`` is the upper factor of the inverse, ``H^-1 = U^T U``. One Cholesky
factorisation and one triangular inverse replace the usual potrf, potri, potrf.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.ops.matrix import to_host
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call
from numbacalib.runtime.finite import require_finite

TINY = np.finfo(np.float64).tiny
"""In place of the mean of a diagonal that is 0 throughout."""


class HessianFactors:
    """Cholesky factors of E damped Hessians.

    On a GPU they are under way: its numbers are waited for when one is asked for.

    Attributes
    ----------
    upper : array [E, K, K]
        ``R``, upper triangular, C-contiguous, ``H + damping = R R^T`` for each.
    dead : bool array [E, K]
        Channels that no input ever excited, ``H[j, j] == 0``.
    summary : float64 array [E, 5]
        Damping, smallest diagonal entry, number of dead channels, minor, and smallest pivot of each.
    """

    def __init__(self, upper: Any, dead: Any, summary: Any) -> None:
        self.upper = upper
        self.dead = dead
        self.summary = summary

    @property
    def are_known(self) -> bool:
        """Whether the numbers are there without waiting."""
        return isinstance(self.summary, np.ndarray)

    @cached_property
    def _figures(self) -> NDArray[np.float64]:
        return to_host(self.summary)

    @property
    def dampings(self) -> list[float]:
        """What was added to the diagonals of the live channels."""
        return self._figures[:, 0].tolist()

    @property
    def least(self) -> list[float]:
        """Smallest diagonal entries."""
        return self._figures[:, 1].tolist()

    @property
    def dead_counts(self) -> list[int]:
        """Numbers of dead channels."""
        return self._figures[:, 2].astype(int).tolist()

    @property
    def minors(self) -> list[int]:
        """0, or the order of the leading minor of the reversed matrix that is not positive.

        The factor is then of no use.
        """
        return self._figures[:, 3].astype(int).tolist()

    @property
    def smallest_pivots(self) -> list[float]:
        """Least pivots of live channels, as fractions of the mean diagonals; 0 if none is alive."""
        return self._figures[:, 4].tolist()

    def error(self, index: int, name: str, percdamp: float) -> np.linalg.LinAlgError:
        """Return the error for a matrix, called `name`, that is not positive definite."""
        channel = self.upper.shape[1] - self.minors[index]
        return np.linalg.LinAlgError(
            f"{name}: not positive definite at channel {channel} with damping "
            f"{self.dampings[index]:.3g} (percdamp {percdamp:g}), smallest diagonal entry "
            f"{self.least[index]:.3g}: raise percdamp, or calibrate on more tokens than channels"
        )


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
    with call(__name__, stream, hessian=hessian) as (kernels, hessian):
        size, _ = checks.matrix("hessian", hessian, ("K", "K"))
        checks.matrix("hessian", hessian, (size, size))
        require_finite("hessian", hessian)
        factors = factor_hessians(hessian.reshape(1, size, size), [percdamp])
        if factors.minors[0]:
            raise factors.error(0, "hessian", percdamp)
        return kernels.invert(factors.upper[0])


def factor_hessians(
    hessians: Any, percdamps: Sequence[float], *, dtype: DTypeLike | None = None
) -> HessianFactors:
    """Damp E finite Hessians [E, K, K], each by a fraction of its mean diagonal, and factor them.

    A matrix that is not positive definite shows in `HessianFactors.minors`. `dtype` is float32 or
    float64, by default float64 for float64 Hessians alone.
    """
    with call(__name__, hessian=hessians) as (kernels, hessians):
        for percdamp in percdamps:
            if checks.finite_number("percdamp", percdamp) < 0:
                raise ValueError(f"percdamp: expected a number not below 0, got {percdamp}")
        dtype = checks.result_dtype(hessians) if dtype is None else np.dtype(dtype)
        return kernels.factor(hessians, percdamps, dtype)
