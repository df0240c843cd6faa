"""Traces of products on the CPU: one product of matrices each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots, product
from numbacalib.runtime import checks


def trace_of_errors(
    weight: NDArray, values: NDArray, hessian: NDArray, channel_scales: NDArray | None
) -> float:
    """See `numbacalib.ops.proxy_loss.trace_of_errors`."""
    difference = np.subtract(weight, values, dtype=np.float32)
    if channel_scales is not None:
        difference /= channel_scales
    hessian = hessian.astype(checks.result_dtype(hessian), copy=False)
    return float(np.vdot(difference @ hessian, difference))


def trace_of_products(left: NDArray, moment: NDArray, right: NDArray) -> float:
    """See `numbacalib.ops.proxy_loss.trace_of_products`."""
    return float(group_dots(product(left, moment), right, left.shape[1]).sum())
