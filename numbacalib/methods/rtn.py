"""Round-to-nearest: each weight to the nearest point of its group's grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.methods.quantized_weight import QuantizedWeight, stored
from numbacalib.methods.settings import checked_settings
from numbacalib.ops.gptq_quantize_column import GroupedCodes
from numbacalib.ops.grid import grid_codes, grid_scales, group_indices


def rtn(
    weight: NDArray,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
) -> QuantizedWeight:
    """Quantize a weight by rounding to nearest.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    bits : int
        2 to 8.
    group_size : int or None, default 128
        Input channels that share a scale; divides K. None is one scale a row.
    symmetric : bool, default False
    scale_dtype : dtype, default float16
        What scales are stored in; codes are chosen against the rounded scales.

    Raises
    ------
    ValueError, TypeError
        If a setting does not fit, or a weight is not finite (the first index is named).
    """
    grid, size, dtype = checked_settings(weight, bits, group_size, symmetric, scale_dtype)
    scales, zeros = grid_scales(weight, size, grid)
    codes = grid_codes(weight, scales, zeros, group_indices(weight.shape[1], size), grid)
    return stored(GroupedCodes(codes, scales, zeros, None), grid, size, dtype)
