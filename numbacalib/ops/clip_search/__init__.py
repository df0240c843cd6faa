"""Scales of groups by a search of the clipping that loses least in each group's own output."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from numbacalib.ops.clip_search import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.grid import Grid


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.clip_search import gpu

    return gpu


def clip_scales(
    matrix: Any, hessian: Any, group_size: int, grid: Grid, shares: NDArray
) -> tuple[Any, Any]:
    """Scales and zero points of the groups of a matrix [M, K], each [M, G], in its accumulator type.

    Parameters
    ----------
    matrix : array [M, K], float16, bfloat16, float32 or float64
    hessian : array [K, K]
        A group's loss is ``d H_gg d^T``, with d its errors.
    group_size : int
        Divides K.
    grid : Grid
    shares : array of the accumulators' dtype
        Shares of a group's largest magnitude to try; of equal losses the first is kept.
    """
    with call(cpu, _gpu, matrix=matrix, hessian=hessian) as (kernels, matrix, hessian):
        return kernels.clip_scales(matrix, hessian, group_size, grid, shares)
