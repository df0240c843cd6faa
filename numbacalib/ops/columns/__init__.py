"""Reductions along the rows of a matrix, one result a column, in a fixed order.

Two of the operations are little else: means of powers are Fisher information and AWQ's weight magnitudes,
the largest magnitude is AWQ's of activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.columns import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.columns import gpu

    return gpu


def power_means(matrix: Any, power: int, dtype: np.dtype) -> Any:
    """``mean_n |matrix[n, j]| ** power`` for power 1 or 2, accumulated in `dtype`, [K].

    Parameters
    ----------
    matrix : array [N, K], float16, bfloat16, float32 or float64
        Of any strides.
    """
    with call(cpu, _gpu, matrix=matrix) as (kernels, matrix):
        return kernels.power_means(matrix, power, dtype)


def magnitude_max(matrix: Any, dtype: np.dtype) -> Any:
    """``max_n |matrix[n, j]|`` as float32 or float64, [K]; NaN where one is NaN."""
    with call(cpu, _gpu, matrix=matrix) as (kernels, matrix):
        return kernels.magnitude_max(matrix, dtype)
