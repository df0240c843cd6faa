"""A quantized weight as arrays, before any file format: NumPy's, or on a CUDA device."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.ops.grid import grid_values
from numbacalib.ops.matrix import cast, to_host
from numbacalib.runtime import checks
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.spec.block_grid import BlockScales
from numbacalib.spec.grid import group_indices


class StoredWeight(Protocol):
    """A weight [M, K] in a form that takes less memory."""

    def dequantize(self, dtype: DTypeLike = np.float32) -> Any:
        """Return the weights that are stored, [M, K]."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes and grids of one linear layer's weight [M, K].

    ``weight[i, j] = (codes[i, j] - zeros[i, g]) * scales[i, g]`` with ``g = g_idx[j]``, or
    ``j // group_size`` where `g_idx` is None. Codes and zeros are unsigned on both grids: symmetric
    ones are the signed codes plus ``2 ** (bits - 1)``, which is also their zero.
    """

    codes: Any
    """uint8 [M, K], in ``[0, 2 ** bits - 1]``."""
    scales: Any
    """[M, G], in the dtype in which they are stored."""
    zeros: Any
    """[M, G], uint8, or float32 where the grid has real ones."""
    bits: int
    group_size: int
    """Input channels that share a scale; K is one scale a row."""
    symmetric: bool
    g_idx: NDArray[np.int64] | None = None
    """Group of each input channel, [K] on the host, where groups are not runs of channels."""
    blocks: BlockScales | None = None
    """What `scales` and `zeros` are made of, on the host, where they are quantized themselves."""

    @property
    def group_of(self) -> NDArray[np.int64]:
        """Group of each input channel, [K]."""
        if self.g_idx is not None:
            return self.g_idx
        return group_indices(self.codes.shape[1], self.group_size)

    def __eq__(self, other: object) -> bool:
        """Whether another has the same codes, grids and groups, to the bit, on whichever device."""
        if not isinstance(other, QuantizedWeight):
            return NotImplemented
        mine, theirs = self.to_host(), other.to_host()
        return all(
            np.array_equal(getattr(mine, field.name), getattr(theirs, field.name))
            for field in fields(self)
            if field.name != "blocks"  # scales and zeros say it
        )

    def to_host(self) -> QuantizedWeight:
        """Return the same with NumPy arrays."""
        codes, scales, zeros = map(to_host, (self.codes, self.scales, self.zeros))
        return replace(self, codes=codes, scales=scales, zeros=zeros)

    def dequantize(self, dtype: DTypeLike = np.float32) -> Any:
        """Return the weights that the codes stand for, [M, K], computed in float32.

        `dtype` is one of the four that weights come in, as NumPy, ml_dtypes or torch have it, or its name.
        """
        target = checks.float_dtype("dtype", dtype)
        with arrays_of_one_device(codes=self.codes, scales=self.scales, zeros=self.zeros) as arrays:
            codes, scales, zeros = arrays
            scales = cast(scales, np.float32)
            return cast(grid_values(codes, scales, zeros, self.group_of, self.bits), target)
