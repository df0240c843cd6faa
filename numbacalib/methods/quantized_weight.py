"""A quantized weight as arrays, before any file format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.ops.grid import grid_values, group_indices
from numbacalib.spec.grid import Grid


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

    @property
    def group_of(self) -> NDArray[np.int64]:
        """Group of each input channel, [K]."""
        if self.g_idx is not None:
            return self.g_idx
        return group_indices(self.codes.shape[1], self.group_size)

    def dequantize(self, dtype: DTypeLike = np.float32) -> NDArray:
        """Return the weights that the codes stand for, [M, K], computed in float32."""
        values = np.empty(self.codes.shape, np.float32)
        unsigned = Grid(self.bits, symmetric=False)
        scales, zeros = self.scales.astype(np.float32), self.zeros.astype(np.float32)
        return grid_values(self.codes, scales, zeros, self.group_of, unsigned, values).astype(
            dtype, copy=False
        )
