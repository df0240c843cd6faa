"""Scales of groups refitted to given codes; see `spec.scale_refit`."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.scale_refit import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.scale_refit import gpu

    return gpu


def refitted_scales(codes: Any, zeros: Any, scales: Any, errors: Any, hessian: Any) -> Any:
    """Scales [M, G] with which each row loses least, in their own dtype; the old ones if none lose less.

    A row's new scales are rounded to the dtype first and taken only if the loss then falls. A scale that
    would change its sign stays.

    Parameters
    ----------
    codes, zeros : arrays [M, K] and [M, G]
        Unsigned codes, uint8, zeros uint8 or float32; groups are runs of K / G channels.
    scales : array [M, G], float16, bfloat16 or float32
    errors : array [M, K]
        ``w - q`` with the old scales, float32, or float64 if the Hessian is.
    hessian : array [K, K], of the same dtype
    """
    arrays = {"codes": codes, "zeros": zeros, "scales": scales, "errors": errors}
    with call(cpu, _gpu, **arrays, hessian=hessian) as (kernels, *taken):
        return kernels.refitted_scales(*taken)
