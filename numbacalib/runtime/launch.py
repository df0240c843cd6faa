"""Launching kernels, and the shapes of their grids."""

from __future__ import annotations

from numbacalib.runtime.device import launch

__all__ = ["MOST_BLOCKS", "column_blocks", "launch"]

MOST_BLOCKS = 65535
"""Blocks of a grid along y and along z: CUDA's limit."""


def column_blocks(shape: tuple[int, int], threads: int) -> tuple[int, int]:
    """Return the grid of a kernel with one thread a column, whose blocks stride over the rows."""
    rows, columns = shape
    return -(-columns // threads), min(rows, MOST_BLOCKS)
