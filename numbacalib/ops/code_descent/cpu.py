"""Coordinate descent on the CPU: one task a row, in which each code that changes costs a row of H.

Few change, and a row's pulls stay in the first-level cache: blocks of columns with products between them,
as on a GPU, would cost more.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel
from numbacalib.runtime.packed_product import product
from numbacalib.spec.code_descent import better_code, steps_of_pull
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
    passes: int,
) -> NDArray:
    """See `numbacalib.ops.code_descent.descended_codes`."""
    pulls = product(errors, hessian)
    pulls += errors.dtype.type(damping) * errors
    found = codes.copy()
    bounds = grid.bounds(errors.dtype)
    hessian = np.ascontiguousarray(hessian)
    grids = carrier(scales), zeros, group_of, bounds
    _descend(found, *grids, pulls, hessian, damping, passes)
    return found


@kernel
def _descend(codes, scales, zeros, group_of, bounds, pulls, hessian, damping, passes):
    """Split: one task a row."""
    real = pulls.dtype.type
    for i in prange(len(codes)):
        changed = True
        for _ in range(passes):
            if not changed:
                break
            changed = False
            for j in range(codes.shape[1]):
                g = group_of[j]
                scale, zero = real(widen(scales[i, g])), real(zeros[i, g])
                steps = steps_of_pull(hessian[j, j] + real(damping), scale, bounds)
                code = real(codes[i, j])
                best = better_code(code, pulls[i, j], steps, zero, bounds)
                if best != code:
                    changed = True
                    codes[i, j] = np.uint8(best)
                    move = value_of(best, scale, zero) - value_of(code, scale, zero)
                    for k in range(codes.shape[1]):
                        pulls[i, k] -= move * hessian[j, k]
                    pulls[i, j] -= move * real(damping)
