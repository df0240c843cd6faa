"""Magnitudes of weights in their groups on the CPU, by NumPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import checks


def relative_magnitudes(weight: NDArray, group_size: int) -> NDArray:
    """See `numbacalib.ops.magnitudes.relative_magnitudes`."""
    magnitude = np.abs(weight.astype(checks.result_dtype(weight), copy=False))
    groups = magnitude.reshape(len(weight), -1, group_size)
    largest = groups.max(axis=2, keepdims=True)
    return (groups / np.where(largest > 0, largest, 1)).sum(axis=0, dtype=np.float64).ravel()
