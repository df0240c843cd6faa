"""Scales that are themselves quantized, in blocks, as GGML's types store them."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.methods.settings import non_negative
from numbacalib.ops.block_grids import search_block_grids
from numbacalib.ops.matrix import to_host
from numbacalib.runtime import checks
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.block_grid import BlockGrid, BlockScales

LEAST_IMPORTANCE = 1e-6
"""Least importance of a channel, as a share of the row's mean: channels that no token excited count too."""


def block_scales(weight: Any, grid: BlockGrid, importance: Any = None) -> BlockScales:
    """Find the scales and minima of a weight's blocks with little weighted squared error.

    They are found on the CPU, also for a weight on a device. ``scales, zeros = found.grids(grid)`` are
    arguments of `gptq` and `rtn`.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    grid : BlockGrid
        K must be a multiple of the values of its blocks.
    importance : array [K], [1, K] or [M, K], optional
        Weights of the errors, such as the mean square of each input channel.

    Returns
    -------
    BlockScales
        NumPy arrays, in the dtypes of the stored blocks.

    Raises
    ------
    ValueError, TypeError
        If a shape does not fit, a value is not finite, or a scale is too large for float16.

    Notes
    -----
    The grids are those of ``ggml-quants.c`` of https://github.com/ggml-org/ggml; the search is not.
    """
    with arrays_of_one_device(weight=weight, importance=importance) as (weight, importance):
        rows, channels = checks.matrix("weight", weight, ("M", "K"))
        if channels % grid.values:
            raise ValueError(f"weight: expected K a multiple of {grid.values}, got {channels}")
        require_finite("weight", weight)
        factors = np.ones((1, channels), np.float32)
        if importance is not None:
            shapes = [(channels,), (1, channels), (rows, channels)]
            importance = non_negative("importance", importance, shapes)
            factors = _positive(to_host(importance).astype(np.float64))
        found = search_block_grids(to_host(weight), grid, factors)
    if not (np.isfinite(found.block_scales).all() and np.isfinite(found.block_minima).all()):
        raise ValueError("weight: expected blocks whose scales fit into float16, got larger ones")
    return found


def _positive(importance: Any) -> Any:
    """Return importances with a mean around 1, all above 0, float32."""
    mean = importance.mean(axis=1, keepdims=True)
    shares = np.where(mean > 0, importance / np.where(mean > 0, mean, 1), 1)
    return np.maximum(shares, LEAST_IMPORTANCE).astype(np.float32)
