"""Checks that every method makes of its weight and settings, before any work."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.methods.quantized_weight import storage_grid
from numbacalib.runtime import checks
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.grid import Grid


def checked_settings(
    weight: NDArray, bits: int, group_size: int | None, symmetric: bool, scale_dtype: DTypeLike
) -> tuple[Grid, int, np.dtype]:
    """Return the grid, the group size in channels and the scales' dtype, or raise."""
    _, channels = checks.matrix("weight", weight, ("M", "K"))
    require_finite("weight", weight)
    bits = checks.integer("bits", bits, 2, 8)
    size = channels if group_size is None else checks.integer("group_size", group_size, 1, channels)
    if channels % size:
        raise ValueError(f"group_size: expected a divisor of K = {channels}, got {size}")
    dtype = np.dtype(scale_dtype)
    return storage_grid(bits, bool(symmetric), dtype), size, dtype
