"""The order of columns by falling diagonals of matrices, found on their device without waiting."""

from __future__ import annotations

from typing import Any, NamedTuple

from numbacalib.ops.falling_order import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.falling_order import gpu

    return gpu


class ColumnOrders(NamedTuple):
    """Permutations of K columns, one a row, int64 [E, K]: NumPy arrays, or the package's device memory."""

    order: Any
    """The column at each place."""
    place: Any
    """The place of each column."""
    group: Any
    """The group, in natural order, of the column at each place."""


def falling_order(matrices: Any, group_size: int) -> ColumnOrders:
    """Order the columns of each matrix by its falling diagonal; equal entries keep their order.

    Any values give permutations; NaNs come first or last.

    Parameters
    ----------
    matrices : array [E, K, K], float16, bfloat16, float32 or float64
    group_size : int
        Neighbouring columns of a group.
    """
    with call(cpu, _gpu, matrices=matrices) as (kernels, matrices):
        return ColumnOrders(*kernels.falling_order(matrices, group_size))
