"""Products on the CPU, and one task a row for the dot products."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime import packed_product
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add


def product(left: NDArray, right: NDArray) -> NDArray:
    """See `numbacalib.ops.products.product`."""
    return packed_product.product(left, right)


def add_moment(target: NDArray, left: NDArray, right: NDArray, factor: float, keep: float) -> None:
    """See `numbacalib.ops.products.add_moment`."""
    packed_product.add_moment(target, left, right, factor, keep)


def group_dots(left: NDArray, right: NDArray, group_size: int) -> NDArray:
    """See `numbacalib.ops.products.group_dots`."""
    dots = np.empty((len(left), left.shape[1] // group_size))
    _group_dots(len(dots), rows_view(carrier(left)), rows_view(carrier(right)), group_size, dots)
    return dots


@task_kernel
def _group_dots(counter, left, right, group_size, dots):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(dots):
        for g in range(dots.shape[1]):
            total = 0.0
            for j in range(g * group_size, (g + 1) * group_size):
                total += float(widen(left[i, j])) * float(widen(right[i, j]))
            dots[i, g] = total
        i = fetch_add(counter)
