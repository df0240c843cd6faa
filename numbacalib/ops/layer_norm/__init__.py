"""Layer normalization over the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.ops.layer_norm import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.layer_norm import gpu

    return gpu


def layer_norm(x: Any, weight: Any, bias: Any, eps: float, dtype: DTypeLike = np.float32) -> Any:
    """``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` of vectors [..., K], computed in float32.

    Parameters
    ----------
    x : array [..., K], C-contiguous, float16, bfloat16 or float32
    weight : float32 array [K], or [R, K] for R vectors that follow each other, as the heads of a token do
    bias : float32 array of the same shape, or None
    eps : float
    dtype : dtype, default float32
        Of the result [..., K].
    """
    with call(cpu, _gpu, x=x, weight=weight, bias=bias) as (kernels, x, weight, bias):
        if bias is not None:
            bias = checks.rows_of(bias)
        arrays = checks.rows_of(x), checks.rows_of(weight), bias
        result = kernels.layer_norm(*arrays, np.float32(eps), np.dtype(dtype))
        return result.reshape(*x.shape)
