"""The refit of zeros on the CPU: products for the matrices, and a kernel for the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots, product
from numbacalib.ops.scale_refit.cpu import (
    TILE_BYTES,
    centered_codes,
    squares_of_groups,
)
from numbacalib.runtime.half import carrier
from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.scale_refit import refit_row
from numbacalib.spec.zero_refit import GroupMoments, RowMoments, better_grid, follow_grid


class _Grids(NamedTuple):
    """Grids of the groups of some rows, [M, G]."""

    scales: NDArray
    """Their carrier."""
    zeros: NDArray


def refitted_zeros(
    codes: NDArray,
    zeros: NDArray,
    scales: NDArray,
    errors: NDArray,
    moments: GroupMoments,
    range_of_zeros: tuple[int, int],
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.zero_refit.refitted_zeros`."""
    rows, groups = scales.shape
    new_scales, new_zeros = np.empty_like(scales), np.empty_like(zeros)
    step = max(1, TILE_BYTES // (16 * groups * groups))
    for first in range(0, rows, step):
        own = slice(first, first + step)
        centered = centered_codes(codes[own], zeros[own], errors.dtype)
        products = _moments(centered, errors[own], moments)
        given = _Grids(carrier(scales[own]), zeros[own])
        found = _Grids(carrier(new_scales[own]), new_zeros[own])
        _refit_rows(len(centered), products, given, range_of_zeros, found)
    return new_scales, new_zeros


def _moments(centered: NDArray, errors: NDArray, moments: GroupMoments) -> RowMoments:
    """Return `RowMoments` of all rows, [M, G, G] and [M, G], except `ones`, which they share."""
    hessian, sums, ones = moments
    groups = sums.shape[1]
    size = len(sums) // groups
    mixed = np.empty((len(centered), groups, groups))
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        mixed[:, g] = product(centered[:, own], sums[own])
    pulls = group_dots(centered, product(errors, hessian), size)
    ones_pulls = product(errors, sums).astype(np.float64)
    codes = squares_of_groups(centered, hessian, groups)
    return RowMoments(codes, mixed, ones, pulls, ones_pulls)


@task_kernel
def _refit_rows(counter, products, given, range_of_zeros, found):
    """Split: workers take rows."""
    rows, groups = products.pulls.shape
    memory = np.empty(groups), np.empty(groups)
    moves = np.empty(groups, np.int64)
    solved, searched = np.empty((2, groups), given.scales.dtype)
    i = fetch_add(counter)
    while i < rows:
        row = RowMoments(
            products.codes[i],
            products.mixed[i],
            products.ones,
            products.pulls[i],
            products.ones_pulls[i],
        )
        scales, zeros, new_zeros = given.scales[i], given.zeros[i], found.zeros[i]
        refit_row(row.codes, row.pulls, scales, solved, memory)
        follow_grid(row, (scales, zeros), (solved, zeros), memory, moves)
        better_grid(row, (solved, zeros), range_of_zeros, (searched, new_zeros), memory, moves)
        follow_grid(row, (solved, zeros), (searched, new_zeros), memory, moves)
        refit_row(row.codes, row.pulls, searched, found.scales[i], memory)
        i = fetch_add(counter)
