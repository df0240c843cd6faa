"""Root mean square normalization over the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.ops.rms_norm import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.rms_norm import gpu

    return gpu


def rms_norm(x: Any, weight: Any, eps: float, dtype: DTypeLike = np.float32) -> Any:
    """``x / sqrt(mean(x**2) + eps) * weight`` of vectors [..., K], computed in float32.

    Parameters
    ----------
    x : array [..., K], C-contiguous, float16, bfloat16 or float32
    weight : float32 array [K]
    eps : float
    dtype : dtype, default float32
        Of the result [..., K].
    """
    with call(cpu, _gpu, x=x, weight=weight) as (kernels, x, weight):
        rows = checks.rows_of(x)
        result = kernels.rms_norm(rows, weight, np.float32(eps), np.dtype(dtype))
        return result.reshape(*x.shape)
