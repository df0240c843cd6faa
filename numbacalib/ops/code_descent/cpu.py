"""Coordinate descent on the CPU: one task a row, in which a code that changes costs a row of H."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.spec.code_descent import better_code
from numbacalib.spec.grid import Grid, value_of


def descended_codes(
    codes: NDArray,
    scales: NDArray,
    zeros: NDArray,
    errors: NDArray,
    hessian: NDArray,
    group_of: NDArray,
    grid: Grid,
    damping: float,
) -> NDArray:
    """See `numbacalib.ops.code_descent.descended_codes`."""
    pulls = errors @ hessian + errors.dtype.type(damping) * errors
    found = codes.copy()
    bounds = grid.bounds(errors.dtype)
    hessian = np.ascontiguousarray(hessian)
    _descend(found, carrier(scales), zeros, group_of, bounds, pulls, hessian, damping)
    return found


@kernel
def _descend(codes, scales, zeros, group_of, bounds, pulls, hessian, damping):
    """Split: one task a row."""
    real = pulls.dtype.type
    for i in prange(len(codes)):
        for j in range(codes.shape[1]):
            curvature = hessian[j, j] + real(damping)
            if curvature > 0:
                g = group_of[j]
                scale, zero, code = real(widen(scales[i, g])), real(zeros[i, g]), real(codes[i, j])
                best = better_code(code, pulls[i, j], curvature, scale, zero, bounds)
                if best != code:
                    step = value_of(best, scale, zero) - value_of(code, scale, zero)
                    codes[i, j] = np.uint8(best)
                    for k in range(j + 1, codes.shape[1]):
                        pulls[i, k] -= step * hessian[j, k]
