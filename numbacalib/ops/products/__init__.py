"""Matrix products outside of layers, and dot products of groups of columns."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.products import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.products import gpu

    return gpu


def product(left: Any, right: Any) -> Any:
    """``left right``, [M, N]; both float32, or both float64."""
    with call(cpu, _gpu, left=left, right=right) as (kernels, left, right):
        return kernels.product(left, right)


def add_moment(target: Any, left: Any, right: Any, factor: float, keep: float) -> None:
    """Set ``target = keep * target + factor * left^T right``, in place, with float32 sums.

    Parameters
    ----------
    target : float32 array [K, L], C-contiguous
    left, right : arrays [N, K] and [N, L], of one dtype of float16, bfloat16 and float32
        On a GPU they are read in their own width, by tensor cores if it is 16 bits.
    factor, keep : float
    """
    with call(cpu, _gpu, target=target, left=left, right=right) as (kernels, target, left, right):
        kernels.add_moment(target, left, right, factor, keep)


def group_dots(left: Any, right: Any, group_size: int) -> Any:
    """``sum_j left[i, j] * right[i, j]`` over each run of columns, float64 [M, K / group_size]."""
    with call(cpu, _gpu, left=left, right=right) as (kernels, left, right):
        checks.matrix("right", right, left.shape)
        return kernels.group_dots(left, right, group_size)
