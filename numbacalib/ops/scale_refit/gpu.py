"""The refit on a GPU: products of cuBLAS for the matrices, one thread a row for their solution.

Rows are the last axis of all arrays that a thread walks through, so that reads coalesce. Codes less integer
zeros have 8 bits, as bfloat16 has: tensor cores multiply them directly by a pair for the Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.ops.products.gpu import repays_pairs
from numbacalib.runtime import device
from numbacalib.runtime.blas_gpu import multiply
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import column_blocks, launch
from numbacalib.runtime.pairs_gpu import Pair, add_products
from numbacalib.spec import scale_refit

THREADS = device.sized(64, simulated=4)
TILE_BYTES = 1 << 31
"""Bytes of the matrices of rows that are solved together."""

refit_row = device.in_kernels(scale_refit.refit_row)


def refitted_scales(codes: Any, zeros: Any, scales: Any, errors: Any, hessian: Any) -> Any:
    """See `numbacalib.ops.scale_refit.refitted_scales`."""
    rows, groups = scales.shape
    found = device.empty(scales.shape, scales.dtype)
    paired = repays_splitting(zeros, len(hessian), hessian.dtype)
    moment = Moment.of(contiguous(hessian), paired=paired)
    step = max(1, TILE_BYTES // (8 * groups * groups))
    for first in range(0, rows, step):
        own = slice(first, first + step)
        given = codes[own], zeros[own], scales[own], errors[own]
        _refit_tile(*given, moment, found[own])
    return device.result(found)


class Moment(NamedTuple):
    """A Hessian, or its sums over groups, in the form that multiplies errors and codes."""

    whole: Any
    pair: Pair | None
    """Pair of bfloat16 of it for tensor cores, if that is faster."""

    @classmethod
    def of(cls, matrix: Any, *, paired: bool) -> Moment:
        """Take a matrix, split if `paired`."""
        return cls(matrix, Pair.of(matrix) if paired else None)

    @property
    def dtype(self) -> np.dtype:
        """Type of the codes that multiply it: for a pair its carrier's."""
        return (self.whole if self.pair is None else self.pair.high).dtype

    @property
    def parts(self) -> tuple[Any, ...]:
        """Matrices of that dtype whose sum it is, the smallest first."""
        return (self.whole,) if self.pair is None else (self.pair.low[0], self.pair.high[0])

    def times_errors(self, errors: Any) -> Any:
        """Return the product with transposed errors, [K, M]."""
        shape = len(self.whole), len(errors)
        if self.pair is None:
            found = device.empty(shape, errors.dtype)
            multiply(self.whole, errors, found, transposed=(False, True))
            return found
        found = device.zeros(shape, np.float32)
        add_products(self.pair, Pair.of(errors), found.reshape(1, *shape), transposed=True)
        return found


def repays_splitting(zeros: Any, channels: int, dtype: np.dtype) -> bool:
    """Return whether products of codes and Hessians are faster on tensor cores."""
    return zeros.dtype == np.uint8 and repays_pairs(channels, channels, dtype)


def _refit_tile(
    codes: Any, zeros: Any, scales: Any, errors: Any, moment: Moment, found: Any
) -> None:
    centered = centered_codes(codes, zeros, moment.dtype)
    systems = squares_and_pulls(centered, errors, moment, scales.shape[1])
    solve_scales(*systems, scales, found)


def solve_scales(matrices: Any, pulls: Any, scales: Any, found: Any) -> None:
    """Set `found` to scales of rows that lose less, or to the old ones: see `spec.scale_refit`."""
    rows, groups = scales.shape
    steps, roots = (device.empty((groups, rows), np.float64) for _ in range(2))
    arrays = matrices, pulls, carrier(scales), carrier(found), steps, roots
    launch(_refit_rows, -(-rows // THREADS), THREADS, *arrays)


def centered_codes(codes: Any, zeros: Any, dtype: np.dtype) -> Any:
    """Codes less the zeros of their groups, transposed: [K, M], of a float type or in its carrier."""
    rows, channels = codes.shape
    centered = device.empty((channels, rows), dtype)
    tiles = column_blocks(centered.shape, THREADS)
    launch(_centre, tiles, THREADS, codes, zeros, channels // zeros.shape[1], centered)
    return centered


def squares_and_pulls(centered: Any, errors: Any, moment: Moment, groups: int) -> tuple[Any, Any]:
    """``c_g H c_h^T`` [G, G, M], its upper triangle, and ``c_g H e^T`` [G, M] for each row, float64."""
    channels, rows = centered.shape
    size = channels // groups
    across = -(-rows // THREADS)
    products = moment.times_errors(errors)
    matrices = device.empty((groups, groups, rows), np.float64)
    pulls = device.empty((groups, rows), np.float64)
    launch(_group_dots, (across, groups), THREADS, products, centered, size, pulls)
    parts = moment.parts
    for g in range(groups):
        own, first = slice(g * size, (g + 1) * size), g * size
        later = products[first:]
        add_parts([part[own, first:] for part in parts], centered[own], later)
        dots = later, centered[first:], size, matrices[g, g:]
        launch(_group_dots, (across, groups - g), THREADS, *dots)
    return matrices, pulls


def add_parts(parts: Sequence[Any], codes: Any, out: Any) -> None:
    """Set `out` to the product of codes with the transposed sum of the parts."""
    for n, part in enumerate(parts):
        multiply(part, codes, out, keep=float(n > 0), transposed=(True, False))


@cuda.jit
def _centre(codes, zeros, size, centered):
    """Codes less zeros, transposed. Threads: one a row, blocks stride over the channels."""
    i = cuda.grid(1)
    if i < centered.shape[1]:
        for k in range(np.int64(cuda.blockIdx.y), centered.shape[0], cuda.gridDim.y):
            code = float(codes[i, k]) - float(zeros[i, k // size])
            centered[k, i] = narrow(code, centered[k, i])


@cuda.jit
def _group_dots(left, right, size, dots):
    """Dot products of groups of rows. Threads: one a column; blocks along y: a group."""
    i = cuda.grid(1)
    if i < dots.shape[1]:
        for g in range(np.int64(cuda.blockIdx.y), dots.shape[0], cuda.gridDim.y):
            total = 0.0
            for k in range(g * size, (g + 1) * size):
                total += float(left[k, i]) * float(widen(right[k, i]))
            dots[g, i] = total


@cuda.jit
def _refit_rows(matrices, pulls, scales, found, steps, roots):
    """Threads: one a row."""
    i = cuda.grid(1)
    if i < pulls.shape[1]:
        memory = steps[:, i], roots[:, i]
        refit_row(matrices[:, :, i], pulls[:, i], scales[i], found[i], memory)
