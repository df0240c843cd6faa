"""Integer zeros of groups, with their scales, refitted to given codes; see `spec.zero_refit`."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.zero_refit import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.zero_refit import GroupMoments


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.zero_refit import gpu

    return gpu


def refitted_zeros(
    codes: Any,
    zeros: Any,
    scales: Any,
    errors: Any,
    moments: GroupMoments,
    range_of_zeros: tuple[int, int],
) -> tuple[Any, Any]:
    """Scales and zeros [M, G] with which each row loses less, in their dtypes; the old ones if none do.

    Parameters
    ----------
    codes, zeros : uint8 arrays [M, K] and [M, G]
        Unsigned; groups are runs of K / G channels.
    scales : array [M, G], float16, bfloat16 or float32
    errors : array [M, K]
        ``w - q`` with the old scales and zeros, float32, or float64 if the Hessian is.
    moments : GroupMoments
        Of the same dtype.
    range_of_zeros : two int
        The least and the greatest allowed zero.
    """
    arrays = {"codes": codes, "zeros": zeros, "scales": scales, "errors": errors}
    with call(cpu, _gpu, **arrays, **moments._asdict()) as (kernels, *taken):
        grid, moments = taken[:4], GroupMoments(*taken[4:])
        return kernels.refitted_zeros(*grid, moments, range_of_zeros)
