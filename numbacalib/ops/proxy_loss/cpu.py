"""The proxy loss on the CPU: one product of matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
