"""Shrinkage of a Hessian toward its diagonal: the remedy for fewer tokens than channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks


def shrunk(hessian: NDArray, shrinkage: float) -> NDArray:
    """Return ``(1 - shrinkage) * H + shrinkage * diag(H)``."""
    shrinkage = checks.finite_number("shrinkage", shrinkage)
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage: expected 0 to 1, got {shrinkage}")
    result: NDArray = hessian * hessian.dtype.type(1 - shrinkage)
    np.fill_diagonal(result, np.diagonal(hessian))
    return result


def shrinkage_for(hessian: NDArray, tokens: int) -> float:
    """How far to shrink a Hessian that was estimated from so many tokens, 0 to 1.

    ``sum (1 - r**2)**2 / tokens / sum r**2`` over the correlations r of different channels: the
    share that minimises the expected squared error of the correlations for independent draws from a
    normal distribution. Tokens of one text are alike, so this is on the low side.

    Parameters
    ----------
    hessian : array [K, K]
    tokens : int
        At least 1.

    Notes
    -----
    Schäfer and Strimmer, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation and
    Implications for Functional Genomics" (2005), target D, with the large-sample variance
    ``(1 - r**2)**2 / n`` of a normal distribution's correlation.
    """
    tokens = checks.integer("tokens", tokens, 1, 1 << 62)
    live = np.diagonal(hessian) > 0
    spread = np.sqrt(np.diagonal(hessian)[live].astype(np.float64))
    noise = signal = 0.0
    for row in np.flatnonzero(live):
        squares = (hessian[row, live] / spread) ** 2 / float(hessian[row, row])
        noise += float(((1 - squares) ** 2).sum())  # 0 for a channel with itself
        signal += float(squares.sum()) - 1
    return min(1.0, noise / tokens / signal) if signal > 0 else 0.0
