"""Grids whose scales are themselves quantized, in blocks: how GGML stores a weight.

A block has one or several groups of equal length. With one group, its scale and its minimum are stored
as they are; with several, each group has small integers that multiply the block's own two numbers::

    value = (scale * group_scale) * code - (minimum * group_minimum)

A grid without minima has ``value = scale * group_scale * (code - 2**(bits - 1))``, and group scales of
either sign.

Source: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (``block_q4_0`` to ``block_q6_K``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_SHARE = 2.0**-19
"""Least scale, as a share of the block's largest minimum: keeps zeros, ``minimum / scale``, in the domain
of `rint`."""


class BlockGrid(NamedTuple):
    """Layout of a block."""

    bits: int
    """Bits of a code."""
    group_size: int
    """Values that share a scale."""
    groups: int
    """Groups of a block."""
    scale_bits: int
    """Bits of a group's scale, and of its minimum; 0 if the block has one group."""
    minima: bool

    @property
    def values(self) -> int:
        """Values of a block."""
        return self.group_size * self.groups

    @property
    def half(self) -> int:
        """Number that is subtracted from the codes of a grid without minima."""
        return 1 << (self.bits - 1)

    @property
    def scale_range(self) -> tuple[int, int]:
        """The least and the greatest integer that a group's scale may be."""
        if self.scale_bits == 0:
            return 1, 1
        if self.minima:
            return 0, (1 << self.scale_bits) - 1
        return -(1 << (self.scale_bits - 1)), (1 << (self.scale_bits - 1)) - 1

    def shares(self) -> np.ndarray:
        """Shares of a group's full range that a search tries: many around 1, then a few smaller ones."""
        levels = (1 << self.bits) - 1
        around = levels / (levels + np.linspace(-0.9, 1.2, 22))
        clipped = [share for share in (0.9, 0.8, 0.7, 0.6) if share < around.min()]
        return np.append(around, clipped).astype(np.float32)


class BlockScales(NamedTuple):
    """Scales and minima of a weight [M, K] as blocks store them: S blocks and G groups a row."""

    block_scales: np.ndarray
    """float16 [M, S]."""
    block_minima: np.ndarray
    """float16 [M, S]; zeros if the grid has none."""
    group_scales: np.ndarray
    """int8 [M, G]; ones if a block has one group."""
    group_minima: np.ndarray
    """uint8 [M, G]; ones if a block has one group."""

    def grids(self, grid: BlockGrid) -> tuple[np.ndarray, np.ndarray]:
        """Scales and real zeros of the groups, float32 [M, G]: ``value = (code - zero) * scale``."""
        scales, minima = self.products(grid)
        if not grid.minima:
            return scales, np.full_like(scales, grid.half)
        return scales, minima / scales

    def products(self, grid: BlockGrid) -> tuple[np.ndarray, np.ndarray]:
        """Scales and minima of the groups, float32 [M, G]."""
        wide = [
            np.repeat(numbers.astype(np.float32), grid.groups, axis=1)
            for numbers in (self.block_scales, self.block_minima)
        ]
        return wide[0] * self.group_scales, wide[1] * self.group_minima
