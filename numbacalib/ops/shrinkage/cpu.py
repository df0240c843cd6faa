"""Shrinkage on the CPU, by NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shrunk(hessians: NDArray, factors: NDArray) -> NDArray:
    """Multiply the entries off the diagonal of each H by a factor, in the factors' dtype."""
    result: NDArray = hessians * factors[:, None, None]
    for matrix, hessian in zip(result, hessians, strict=True):
        np.fill_diagonal(matrix, np.diagonal(hessian))
    return result


def correlation_sums(hessian: NDArray) -> tuple[float, float]:
    """See `numbacalib.ops.shrinkage.correlation_sums`; row by row, with memory for one row."""
    live = np.diagonal(hessian) > 0
    spread = np.sqrt(np.diagonal(hessian)[live].astype(np.float64))
    noise = signal = 0.0
    for row in np.flatnonzero(live):
        squares = (hessian[row, live] / spread) ** 2 / float(hessian[row, row])
        noise += float(((1 - squares) ** 2).sum())  # 0 for a channel with itself
        signal += float(squares.sum()) - 1
    return noise, signal
