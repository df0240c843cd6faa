"""Scales of groups as blocks store them: search for a weight's scales, and their lossless factorization.

A quantized weight has only the products, each group's scale and zero. The two float16 numbers of a block
and the small integers of its groups follow from them: all products are exact in float32, so that every
factorization into such numbers gives the same grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.gguf_blocks import BLOCK_TYPES
from numbacalib.methods import QuantizedWeight
from numbacalib.methods.block_scales import block_scales
from numbacalib.methods.settings import FoundGrids, GridSettings, Refit
from numbacalib.models.gguf_layouts import Tiles
from numbacalib.ops.matrix import from_host, to_host
from numbacalib.spec.block_grid import BlockGrid, BlockScales

MINIMUM_BITS = 18
"""Bits of a minimum's significand: float16's 11 plus an integer's; a float32 zero has more."""


@dataclass(frozen=True)
class BlockFinder:
    """Finder of the grids of one of GGML's types, with errors weighted by an importance if there is one.

    See `numbacalib.methods.settings.GridFinder`.
    """

    kind: str
    tiles: Tiles | None = None
    """Order of a layer's columns in the file, if it differs: blocks are of neighbors in that order."""

    @property
    def refit(self) -> Refit | None:
        """Refit of float16 scales and minima for blocks of one group; groups of one block are coupled."""
        grid = BLOCK_TYPES[self.kind].grid
        if grid.scale_bits:
            return None
        return Refit("biases" if grid.minima else "kept", dtype=np.dtype(np.float16))

    def __call__(self, weight: Any, settings: GridSettings) -> FoundGrids:
        """Return scales and, where the type has minima, real zeros."""
        grid, importance = BLOCK_TYPES[self.kind].grid, settings.importance
        if self.tiles is None:
            scales, zeros = block_scales(weight, grid, importance).grids(grid)
        else:
            columns = self.tiles.order(1)
            factors = None if importance is None else to_host(importance)[..., columns]
            found = block_scales(to_host(weight)[:, columns], grid, factors).grids(grid)
            groups = np.argsort(self.tiles.order(grid.group_size))
            scales, zeros = (each[:, groups] for each in found)
        own = from_host(zeros, weight) if grid.minima else None
        return FoundGrids(from_host(scales, weight), own)


def in_our_columns(weight: QuantizedWeight, tiles: Tiles) -> QuantizedWeight:
    """Put columns of a file's layer, and their groups, in Hugging Face's order."""
    return _reordered(weight, *map(np.argsort, _orders(weight, tiles)))


def in_file_columns(weight: QuantizedWeight, tiles: Tiles) -> QuantizedWeight:
    """Undo `in_our_columns`."""
    return _reordered(weight, *_orders(weight, tiles))


def _orders(weight: QuantizedWeight, tiles: Tiles) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return tiles.order(1), tiles.order(weight.group_size)


def _reordered(
    weight: QuantizedWeight, columns: NDArray[np.int64], groups: NDArray[np.int64]
) -> QuantizedWeight:
    return replace(
        weight,
        codes=weight.codes[:, columns],
        scales=weight.scales[:, groups],
        zeros=weight.zeros[:, groups],
    )


def split_scales(scales: NDArray[Any], zeros: NDArray[Any], grid: BlockGrid) -> BlockScales:
    """Factor scales and zeros [M, G] into the numbers that blocks store.

    Raises
    ------
    ValueError
        If blocks cannot hold them.
    """
    rows = len(scales)
    wide = scales.astype(np.float64)
    low, high = grid.scale_range
    block, integers = _factored(wide.reshape(-1, grid.groups), low, high)
    minima = np.zeros(len(block)), np.ones(integers.shape)
    if grid.minima:
        found = _rounded(zeros.astype(np.float64) * wide, MINIMUM_BITS if grid.scale_bits else 11)
        minima = _factored(found.reshape(-1, grid.groups), min(low, 0), high)
    elif (zeros != grid.half).any():
        raise ValueError(f"zeros: expected {grid.half} in blocks without minima")
    return BlockScales(
        block.astype(np.float16).reshape(rows, -1),
        minima[0].astype(np.float16).reshape(rows, -1),
        integers.astype(np.int8).reshape(rows, -1),
        minima[1].astype(np.uint8).reshape(rows, -1),
    )


def _rounded(numbers: NDArray[np.float64], bits: int) -> NDArray[np.float64]:
    """Round to `bits` bits of significand."""
    significand, exponent = np.frexp(numbers)
    scale = 2.0**bits
    return np.ldexp(np.rint(significand * scale) / scale, exponent)


def _factored(
    products: NDArray[np.float64], low: int, high: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split rows of numbers into one float16 each and integers from `low` to `high`."""
    largest = np.take_along_axis(products, np.abs(products).argmax(1)[:, None], 1)[:, 0]
    common = np.where(largest == 0, 1.0, np.nan)
    # the largest product of a block mostly has an integer near the end of the range
    for integer in sorted({*range(low, high + 1)} - {0}, key=lambda each: -abs(each)):
        left = np.flatnonzero(np.isnan(common))
        if not left.size:
            break
        tried = largest[left] / integer
        with np.errstate(over="ignore"):
            fits = tried.astype(np.float16) == tried
        parts = products[left] / np.where(fits, tried, 1)[:, None]
        fits &= ((parts == np.rint(parts)) & (parts >= low) & (parts <= high)).all(1)
        common[left[fits]] = tried[fits]
    if np.isnan(common).any():
        row = int(np.isnan(common).argmax())
        raise ValueError(
            f"scales: expected a float16 times integers up to {high}, got {products[row, :2].tolist()} "
            "in a block"
        )
    return common, np.rint(products / common[:, None])
