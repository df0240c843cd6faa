"""A quantized weight as arrays, before any file format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.ops.gptq_quantize_column import GroupedCodes
from numbacalib.ops.grid import grid_values, group_indices
from numbacalib.runtime.half import is_bfloat16
from numbacalib.spec.grid import SCALE_BFLOAT16, SCALE_FLOAT16, SCALE_FLOAT32, Grid, code_range


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and grids of one linear layer's weight [M, K].

    ``weight[i, j] = (codes[i, j] - zeros[i, g]) * scales[i, g]`` with ``g = g_idx[j]``, or
    ``j // group_size`` where `g_idx` is None. Codes and zeros are unsigned on both grids: symmetric
    ones are the signed codes plus ``2 ** (bits - 1)``, which is also their zero.
    """

    codes: NDArray
    """uint8 [M, K], in ``[0, 2 ** bits - 1]``."""
    scales: NDArray
    """[M, G], in the dtype in which they are stored."""
    zeros: NDArray
    """uint8 [M, G]."""
    bits: int
    group_size: int
    """Input channels that share a scale; K is one scale a row."""
    symmetric: bool
    g_idx: NDArray | None = None
    """Group of each input channel, int64 [K], where groups are not runs of channels."""

    def dequantize(self, dtype: DTypeLike = np.float32) -> NDArray:
        """Return the weights that the codes stand for, [M, K], computed in float32."""
        channels = self.codes.shape[1]
        group_of = group_indices(channels, self.group_size) if self.g_idx is None else self.g_idx
        values = np.empty(self.codes.shape, np.float32)
        unsigned = Grid(self.bits, symmetric=False)
        scales, zeros = self.scales.astype(np.float32), self.zeros.astype(np.float32)
        return grid_values(self.codes, scales, zeros, group_of, unsigned, values).astype(
            dtype, copy=False
        )


def storage_grid(bits: int, symmetric: bool, scale_dtype: np.dtype) -> Grid:
    """Return the grid whose scales are representable in `scale_dtype`."""
    if scale_dtype == np.float16:
        return Grid(bits, symmetric, SCALE_FLOAT16)
    if is_bfloat16(scale_dtype):
        return Grid(bits, symmetric, SCALE_BFLOAT16)
    if scale_dtype == np.float32:
        return Grid(bits, symmetric, SCALE_FLOAT32)
    raise TypeError(f"scale_dtype: expected float16, bfloat16 or float32, got {scale_dtype}")


def stored(
    found: GroupedCodes, grid: Grid, group_size: int, scale_dtype: np.dtype
) -> QuantizedWeight:
    """Put what a method found into the dtypes in which it is stored."""
    with np.errstate(over="ignore"):
        scales = found.scales.astype(scale_dtype)
    if not np.isfinite(scales).all():
        raise ValueError(
            f"scale_dtype: expected a type that holds the largest scale, {found.scales.max():.3g}, "
            f"got {scale_dtype}"
        )
    low, _ = code_range(grid.bits, grid.symmetric)
    zeros = (found.zeros - low).astype(np.uint8)
    return QuantizedWeight(found.codes, scales, zeros, grid.bits, group_size, grid.symmetric)
