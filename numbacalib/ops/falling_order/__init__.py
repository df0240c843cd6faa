"""The order in which rows of numbers fall, on the device that has them: nothing waits for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from numbacalib.ops.falling_order import cpu
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.falling_order import gpu

    return gpu


class ColumnOrders(NamedTuple):
    """Permutations of K columns, a row each, int64 [E, K]: NumPy's, or device memory of ours."""

    order: Any
    """The column at each place."""
    place: Any
    """The place of each column."""
    group: Any
    """The group of the column at each place, as columns come."""


def falling_order(values: Any, group_size: int) -> ColumnOrders:
    """Order columns by falling values [E, K]; equal ones keep their order.

    Any values give permutations; what is no number comes first or last.

    Parameters
    ----------
    values : array [E, K], float32 or float64
    group_size : int
        Neighbouring columns that are a group.
    """
    with call(cpu, _gpu, values=values) as (kernels, values):
        return ColumnOrders(*kernels.falling_order(values, group_size))
