"""Shrinkage of a Hessian toward its diagonal, and the sums that determine its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from numbacalib.ops.shrinkage import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.shrinkage import gpu

    return gpu


def shrunk(hessians: Any, shares: float | Sequence[float]) -> Any:
    """``(1 - share) * H + share * diag(H)`` of each H, [E, K, K] in the accumulators' dtype.

    The share is one for all, or one for each.
    """
    with call(cpu, _gpu, hessians=hessians) as (kernels, hessians):
        factors = 1 - np.broadcast_to(np.asarray(shares, np.float64), len(hessians))
        return kernels.shrunk(hessians, factors.astype(checks.result_dtype(hessians)))


def correlation_sums(hessian: Any) -> tuple[float, float]:
    """``sum (1 - r**2)**2`` and ``sum r**2`` over the correlations r of different live channels."""
    with call(cpu, _gpu, hessian=hessian) as (kernels, hessian):
        return kernels.correlation_sums(hessian)
