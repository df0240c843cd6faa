"""Coordinate descent over the codes of a quantized weight; see `spec.code_descent`."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.code_descent import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.grid import Grid


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.code_descent import gpu

    return gpu


def descended_codes(
    codes: Any,
    scales: Any,
    zeros: Any,
    group_of: Any,
    bits: int,
    errors: Any,
    hessian: Any,
    damping: float,
    passes: int,
) -> Any:
    """Codes [M, K] after passes over the columns, each chosen again while the row's others stay.

    Parameters
    ----------
    codes, zeros : arrays [M, K] and [M, G]
        Unsigned codes, uint8; zeros uint8 or float32.
    scales : float array [M, G], of any sign
    group_of : int64 array [K]
        On the host.
    bits : int
    errors : array [M, K]
        ``w - q`` of these codes, float32, or float64 if the Hessian is.
    hessian : array [K, K], of the same dtype
    damping : float
        Number added to the Hessian's diagonal. A column whose entry is then 0 stays as it is.
    passes : int
    """
    arrays = {"codes": codes, "scales": scales, "zeros": zeros, "errors": errors}
    with call(cpu, _gpu, **arrays, hessian=hessian) as (kernels, *taken):
        return kernels.descended_codes(
            *taken, group_of, Grid(bits, symmetric=False), damping, passes
        )
