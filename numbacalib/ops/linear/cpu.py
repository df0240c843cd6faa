"""A linear layer's product on the CPU: with the same sums at any number of threads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.packed_product import multiply


def product(x: NDArray, weight: NDArray, bias: NDArray | None, dtype: np.dtype) -> NDArray:
    """See `numbacalib.ops.linear.linear`."""
    result = np.empty((len(x), len(weight)), x.dtype)
    multiply(x, weight, result)
    if bias is not None:
        result += bias
    return result.astype(dtype, copy=False)


def add_product(x: NDArray, weight: NDArray, bias: NDArray | None, target: NDArray) -> None:
    """Add the product to `target` [N, M]."""
    target += product(x, weight, bias, target.dtype)
