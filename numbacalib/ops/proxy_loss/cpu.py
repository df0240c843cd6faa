"""Traces of products on the CPU: one product of matrices each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots, product
from numbacalib.runtime import checks


def start_trace_of_errors(
    weight: NDArray, values: NDArray, hessian: NDArray, channel_scales: NDArray | None
) -> Callable[[], float]:
    """See `numbacalib.ops.proxy_loss.start_trace_of_errors`."""
    difference = np.subtract(weight, values, dtype=np.float32)
    if channel_scales is not None:
        difference /= channel_scales
    difference = difference.astype(checks.result_dtype(hessian), copy=False)
    trace = _trace(difference, hessian, difference)
    return lambda: trace


def start_trace_of_products(left: NDArray, moment: NDArray, right: NDArray) -> Callable[[], float]:
    """See `numbacalib.ops.proxy_loss.start_trace_of_products`."""
    trace = _trace(left, moment, right)
    return lambda: trace


def _trace(left: NDArray, moment: NDArray, right: NDArray) -> float:
    return float(group_dots(product(left, moment), right, left.shape[1]).sum())
