"""Coordinate descent on a GPU: products between panels of columns, one kernel that walks a panel.

Pulls of a panel, ``(w - q) H``, are computed as a product with the errors left so far, in every pass. Rows
are independent, so a thread block owns a tile of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.code_descent.sweep_gpu import descent_kernel
from numbacalib.ops.gptq_quantize_column.diagonal_gpu import transpose
from numbacalib.ops.gptq_quantize_column.tiles_gpu import BLOCK, THREADS, tile_count
from numbacalib.ops.matrix.gpu import contiguous
from numbacalib.ops.products.gpu import repays_pairs
from numbacalib.runtime import device
from numbacalib.runtime.blas_gpu import multiply
from numbacalib.runtime.half import carrier
from numbacalib.runtime.launch import launch
from numbacalib.runtime.pairs_gpu import Pair, add_products
from numbacalib.spec.grid import Grid

PANEL = device.sized(4 * BLOCK, simulated=2 * BLOCK)
"""Columns between two products."""


def descended_codes(
    codes: Any,
    scales: Any,
    zeros: Any,
    errors: Any,
    hessian: Any,
    group_of: np.ndarray,
    grid: Grid,
    damping: float,
    passes: int,
) -> Any:
    """See `numbacalib.ops.code_descent.descended_codes`."""
    rows, channels = codes.shape
    dtype = errors.dtype
    hessian = contiguous(hessian)
    found, left = device.empty(codes.shape, np.uint8), device.empty(errors.shape, dtype)
    device.copy(contiguous(codes), found)
    device.copy(contiguous(errors), left)
    turned = device.empty((2, *scales.shape[::-1]), dtype)
    across = -(-rows // THREADS), scales.shape[1]
    launch(transpose, across, THREADS, carrier(scales), zeros, turned[0], turned[1])
    pulls_of = _PairedErrors if repays_pairs(rows, channels, dtype) else _Errors
    products = pulls_of(left, hessian)
    grids = device.from_host(group_of), turned[0], turned[1], grid.bounds(dtype)
    descend, tiles = descent_kernel(dtype.type), tile_count(rows, 1, dtype.type)
    panels = [(begin, min(begin + PANEL, channels)) for begin in range(0, channels, PANEL)]
    moves = device.empty((rows, PANEL), dtype)
    for begin, end in panels * passes:
        pulls = products.pulls(begin, end)
        arguments = hessian, dtype.type(damping), *grids, moves, left, found
        launch(descend, tiles, THREADS, pulls, begin, *arguments)
    return device.result(found)


class _Errors:
    """Errors [M, K], and their products with columns of the Hessian."""

    def __init__(self, errors: Any, hessian: Any) -> None:
        self._errors, self._hessian = errors, hessian

    def pulls(self, begin: int, end: int) -> Any:
        """Pulls of a panel; panels come from left to right, then from the first again."""
        found = device.empty((len(self._errors), end - begin), self._errors.dtype)
        multiply(self._errors, self._hessian[:, begin:end], found)
        return found


class _PairedErrors:
    """`_Errors` on tensor cores: the errors of a panel are split when the next one needs them."""

    def __init__(self, errors: Any, hessian: Any) -> None:
        self._errors = errors.reshape(1, *errors.shape)
        self._pair, self._hessian = Pair.of(errors), Pair.of(hessian)
        self._changed = 0, 0

    def pulls(self, begin: int, end: int) -> Any:
        """See `_Errors`."""
        first, last = self._changed
        if last:
            self._pair.columns(first, last).fill(self._errors[:, :, first:last])
        self._changed = begin, end
        found = device.zeros((self._errors.shape[1], end - begin), np.float32)
        add_products(self._pair, self._hessian.columns(begin, end), found.reshape(1, *found.shape))
        return found
