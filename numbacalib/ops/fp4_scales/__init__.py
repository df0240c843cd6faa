"""Scales of groups of E2M1 codes, as an FP4 format stores them; see `spec.small_floats`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.fp4_scales import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.small_floats import Fp4


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.fp4_scales import gpu

    return gpu


def search_fp4_scales(
    matrix: Any,
    form: Fp4,
    divisor: np.float32,
    steps: NDArray[np.int64],
    hessian: Any = None,
    importance: Any = None,
) -> Any:
    """Scales of the groups of a matrix [M, K], float32 [M, G], each ``value / divisor``.

    Parameters
    ----------
    matrix : array [M, K], float16, bfloat16, float32 or float64
    form : Fp4
        Its groups divide K.
    divisor : float32
        Global scale.
    steps : int64 array
        Codes to try, relative to the one that spans the group; of equal losses the first is kept.
    hessian : array [K, K], optional
        A group's loss is ``d H_gg d^T``, with d its errors.
    importance : array [1, K] or [M, K], optional
        Without a Hessian, the loss is ``sum_j importance[j] * d[j] ** 2``, by default with ones.
    """
    arrays = {"matrix": matrix, "hessian": hessian, "importance": importance}
    with call(cpu, _gpu, **arrays) as (kernels, matrix, hessian, importance):
        return kernels.search_fp4_scales(matrix, form, divisor, steps, hessian, importance)
