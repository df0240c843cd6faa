"""A linear layer's product."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.ops.linear import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.linear import gpu

    return gpu


def linear(
    x: Any, weight: Any, bias: Any = None, *, dtype: DTypeLike | None = None, add_to: Any = None
) -> Any:
    """``x W^T + b`` of all vectors together, with float32 sums.

    Parameters
    ----------
    x : array [..., K], C-contiguous, float16, bfloat16 or float32
    weight : array [M, K], C-contiguous, of the same dtype
    bias : float32 array [M], optional
    dtype : dtype, optional
        Of the result [..., M]: that of `x` by default, or float32.
    add_to : float32 array [..., M], C-contiguous, optional
        Array to add the result to, in place, such as a residual stream; it is returned.
    """
    with call(cpu, _gpu, x=x, weight=weight, bias=bias, add_to=add_to) as (
        kernels, x, weight, bias, target,
    ):  # fmt: skip
        rows = checks.rows_of(x)
        if target is not None:
            kernels.add_product(rows, weight, bias, checks.rows_of(target))
            return add_to
        result = kernels.product(rows, weight, bias, np.dtype(x.dtype if dtype is None else dtype))
        return result.reshape(*x.shape[:-1], weight.shape[0])
