"""Scales of groups by a search of the clipping range that loses least; see `spec.range_search`."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.range_search import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.grid import Grid
from numbacalib.spec.range_search import RangeSearch


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.range_search import gpu

    return gpu


def search_scales(
    matrix: Any, group_size: int, grid: Grid, search: RangeSearch, importance: Any = None
) -> tuple[Any, Any]:
    """Scales and zero points of the groups of a matrix [M, K], each [M, G], in its accumulator type.

    Parameters
    ----------
    matrix : array [M, K], float16, bfloat16, float32 or float64
    group_size : int
        Divides K.
    grid : Grid
    search : RangeSearch
    importance : array [1, K] or [M, K], any of the same dtypes, optional
        Weights of the errors, not negative; all 1 by default.
    """
    with call(cpu, _gpu, matrix=matrix, importance=importance) as (kernels, matrix, importance):
        return kernels.search_scales(matrix, group_size, grid, search, importance)
