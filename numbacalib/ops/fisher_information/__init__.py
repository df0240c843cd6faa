"""Empirical diagonal Fisher information of parameters, from per-sample gradients: a column reduction."""

from __future__ import annotations

import math
from typing import Any

from numbacalib.ops.columns import cpu
from numbacalib.ops.matrix import reshaped
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.columns import gpu

    return gpu


def fisher_information(
    gradients: ArrayT, *, out: ArrayT | None = None, stream: Any = None
) -> ArrayT:
    """Mean of the squared gradients, ``mean_n(g[n, i] ** 2)``.

    Parameters
    ----------
    gradients : array [N, P], float16, bfloat16, float32 or float64
        One row a sample: the gradient of its log-likelihood for P parameters, on any number of axes,
        such as [N, M, K]. Float32 holds the sums of squares for magnitudes below ``1.8e19 / sqrt(N)``.
    out : array [P], optional
        Preallocated C-contiguous result, which shares no memory with the gradients.
    stream : CUDA stream, optional
        Stream to launch on; by default the one that the arrays are made on. CUDA arrays only.

    Returns
    -------
    array [P], float32 (float64 for float64 gradients)
        P on the same axes as in the gradients. A NaN or infinity in a column shows in that column's
        result, and so does a sum of squares that is beyond the type, as an infinity.

    Raises
    ------
    ValueError
        If a shape does not fit or an axis is empty.
    TypeError
        If the dtype is none of the four, or the arrays are on different devices.

    Notes
    -----
    The diagonal of the empirical Fisher information matrix, as SqueezeLLM uses it for sensitivity:
    Kim et al., "SqueezeLLM: Dense-and-Sparse Quantization" (2023), section 4.1.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib import fisher_information
    >>> fisher_information(np.array([[1, 2], [3, 0]], np.float32))
    array([5., 2.], dtype=float32)
    """
    with call(cpu, _gpu, stream, gradients=gradients, out=out) as (kernels, gradients, out):
        _, *shape = checks.samples("gradients", gradients)
        dtype = checks.result_dtype(gradients)
        if out is not None:
            checks.output("out", out, tuple(shape), dtype)
        if len(shape) == 1:
            return kernels.power_means(gradients, 2, dtype, out)
        parameters = math.prod(shape)
        rows = checks.viewed("gradients", gradients, parameters)
        if out is None:
            return reshaped(kernels.power_means(rows, 2, dtype), tuple(shape))
        kernels.power_means(rows, 2, dtype, checks.viewed("out", out, parameters)[0])
        return reshaped(out, tuple(shape))
