"""Shrinkage of a Hessian toward its diagonal, and the sums that tell how far."""

from __future__ import annotations

from typing import Any

from numbacalib.runtime.backend import call


def shrunk(hessians: Any, share: float) -> Any:
    """``(1 - share) * H + share * diag(H)`` of each H, [E, K, K] in the accumulators' dtype."""
    with call(__name__, hessians=hessians) as (kernels, hessians):
        return kernels.shrunk(hessians, share)


def correlation_sums(hessian: Any) -> tuple[float, float]:
    """``sum (1 - r**2)**2`` and ``sum r**2`` over the correlations r of different live channels."""
    with call(__name__, hessian=hessian) as (kernels, hessian):
        return kernels.correlation_sums(hessian)
