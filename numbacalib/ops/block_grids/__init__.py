"""Search of grids whose scales are themselves quantized, in blocks: see `numbacalib.spec.block_grid`."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.block_grids import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.block_grid import BlockGrid, BlockScales


def search_block_grids(matrix: Any, grid: BlockGrid, importance: Any) -> BlockScales:
    """Find scales and minima of all blocks, in stored form, with little weighted squared error.

    The error is ``sum_j importance[j] * sqrt(2 s + w[j] ** 2) * (w[j] - value[j]) ** 2``, each value the
    nearest of its grid and s the mean square of the block's weights: large weights count more, which
    leaves models nearer to the original than the plain importance does.

    Parameters
    ----------
    matrix : array [M, K], float16, bfloat16, float32 or float64
        Finite; the values of a block divide K.
    grid : BlockGrid
    importance : float32 array [1, K] or [M, K]
        Above 0.

    Notes
    -----
    The weights of errors are those of ``quantize_row_q4_K_impl`` in ggml's ``ggml-quants.c``
    (https://github.com/ggml-org/ggml); the search is not. First each group's real scale and minimum are
    found: for several shares of its range, codes are rounded and both are solved for by least squares.
    Then a few values of the block's two numbers are tried, from the largest of its groups', and integers
    next to each group's; the block's numbers are solved for again by least squares over all its codes,
    and kept if the error falls. No group's scale is 0, since code 0 gives the same value at any scale.
    """
    with call(cpu, None, matrix=matrix, importance=importance) as (kernels, matrix, importance):
        return kernels.search_block_grids(matrix, grid, importance)
