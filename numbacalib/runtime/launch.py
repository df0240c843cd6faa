"""Kernel launches, and the shapes of their grids."""

from __future__ import annotations

from numbacalib.runtime.device import launch, sized

__all__ = ["MOST_BLOCKS", "column_blocks", "launch", "row_threads"]

MOST_BLOCKS = 65535
"""Blocks of a grid along y and along z: CUDA's limit."""
ENOUGH_BLOCKS = 16384
"""Blocks of a grid that keep a device busy: more would spend as long on starting as on their work."""

LONG_ROW = 4096
"""Most columns with which the rows of a full multiprocessor, 8 blocks of 256 threads, fit its L1 cache."""


def column_blocks(shape: tuple[int, int], threads: int) -> tuple[int, int]:
    """Return the grid of a kernel with one thread per column, whose blocks stride over the rows."""
    rows, columns = shape
    across = -(-columns // threads)
    return across, min(rows, max(1, ENOUGH_BLOCKS // across), MOST_BLOCKS)


def row_threads(columns: int) -> int:
    """Return the threads of a block that reads a row in any order: few rows at a time stay in L1 caches."""
    return sized(256 if columns <= LONG_ROW else 1024, simulated=4)
