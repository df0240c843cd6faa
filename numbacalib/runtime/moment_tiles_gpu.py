"""Tiles of a matrix of moments, and the order in which clusters compute them; see `runtime.moments_gpu`.

Whole rounds of tiles (one per cluster) come first; the remaining tiles are cut along the rows of the
operands into pieces, whose sums are added in order. Of a square only tiles with an element on or above
the diagonal are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from numba.cuda import types

from numbacalib.runtime.device import cuda
from numbacalib.runtime.product import TILE_ROWS

BAND = 8
"""Tiles in a column of a band: tiles that run at the same time share their columns of x in the L2 cache."""
MAX_PIECES = 32


class Schedule(NamedTuple):
    """Work items of a product: whole tiles, then pieces of the remaining ones."""

    blocks: int
    """Blocks of rows that are summed."""
    items: int
    whole: int
    pieces: int
    """Number of pieces of each remaining tile."""


def schedule(tiles: int, blocks: int, clusters: int) -> Schedule:
    """Cut tiles of this many blocks of rows so that few clusters idle at the end."""
    whole = tiles // clusters * clusters
    rest = tiles - whole

    def rounds(pieces: int) -> float:
        return -(-rest * pieces // clusters) / pieces

    most = min(MAX_PIECES, max(1, blocks // 4), max(1, 2 * clusters // max(rest, 1)))
    pieces = min(range(1, most + 1), key=rounds)
    if pieces == 1:
        return Schedule(blocks, tiles, tiles, 1)
    return Schedule(blocks, whole + rest * pieces, whole, pieces)


def tile_count(shape: tuple[int, int], columns: int, *, square: bool) -> int:
    """Return the tiles of 256 x `columns` of a matrix; of a square, those with an element to compute."""
    row_tiles, column_tiles = -(-shape[0] // TILE_ROWS), -(-shape[1] // columns)
    below = TILE_ROWS // columns * row_tiles * (row_tiles - 1) // 2
    return row_tiles * column_tiles - (below if square else 0)


def tile_finder(columns: int, *, square: bool) -> Callable:
    """Build the device function that gives the position of a tile of 256 x `columns` by its number."""
    return _square_tiles(columns) if square else _all_tiles(columns)


def item_finder(tile_at: Callable) -> Callable:
    """Build the device function that gives the tile and the rows of a work item."""

    @cuda.jit(device=True, forceinline=True)
    def item_at(item, shape, work):
        """First row and column of the item's tile, and its range of row blocks."""
        if item < work.whole:
            row, column = tile_at(item, shape)
            return row, column, types.int64(0), work.blocks
        rest, pieces = item - work.whole, work.pieces
        row, column = tile_at(work.whole + rest // pieces, shape)
        first = work.blocks * (rest % pieces) // pieces
        return row, column, first, work.blocks * (rest % pieces + 1) // pieces

    return item_at


def _square_tiles(columns: int) -> Callable:
    step = TILE_ROWS // columns

    @cuda.jit(device=True, forceinline=True)
    def tile_at(index, shape):
        """First row and column of a tile by its number: by bands of rows, in a band by columns."""
        row_tiles = (shape[0] + TILE_ROWS - 1) // TILE_ROWS
        column_tiles = (shape[1] + columns - 1) // columns
        top = types.int64(0)
        while True:
            height = min(BAND, row_tiles - top)
            left = step * (top + height)
            across = step * height * (height + 1) // 2
            inside = across + (column_tiles - left) * height
            if index < inside:
                break
            index -= inside
            top += height
        if index >= across:
            row, column = top + (index - across) % height, left + (index - across) // height
        else:
            column = step * top
            while index >= (column // step - top) + 1:
                index -= (column // step - top) + 1
                column += 1
            row = top + index
        return row * TILE_ROWS, column * columns

    return tile_at


def _all_tiles(columns: int) -> Callable:
    @cuda.jit(device=True, forceinline=True)
    def tile_at(index, shape):
        """First row and column of a tile by its number: by bands of rows, in a band by columns."""
        row_tiles = (shape[0] + TILE_ROWS - 1) // TILE_ROWS
        column_tiles = (shape[1] + columns - 1) // columns
        top = index // (BAND * column_tiles) * BAND
        height = min(BAND, row_tiles - top)
        index -= top * column_tiles
        return (top + index % height) * TILE_ROWS, index // height * columns

    return tile_at
