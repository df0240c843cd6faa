"""The refit of zeros on the CPU: products of BLAS for the matrices, and a kernel for the rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.products.cpu import group_dots
from numbacalib.ops.scale_refit.cpu import (
    TILE_BYTES,
    centered_codes,
    solved_scales,
    squares_of_groups,
)
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import inlined, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.scale_refit import same_sign
from numbacalib.spec.zero_refit import (
    GroupMoments,
    RowMoments,
    fit_zeros,
    follow,
    lowers_loss_with_zeros,
)


class _Grids(NamedTuple):
    """Grids of the groups of some rows, [M, G]."""

    scales: NDArray
    zeros: NDArray

    def carried(self) -> _Grids:
        """Return them as kernels take them."""
        return self._replace(scales=carrier(self.scales))


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
        given = _Grids(scales[own], zeros[own])
        solved = given._replace(scales=solved_scales(products.codes, products.pulls, given.scales))
        _follow_rows(len(centered), products, given.carried(), solved.carried())
        free = _Grids(*map(np.empty_like, given))
        _search_rows(len(centered), products, solved.carried(), range_of_zeros, free.carried())
        _follow_rows(len(centered), products, solved.carried(), free.carried())
        new_scales[own] = solved_scales(products.codes, products.pulls, free.scales)
        new_zeros[own] = free.zeros
    return new_scales, new_zeros


def _moments(centered: NDArray, errors: NDArray, moments: GroupMoments) -> RowMoments:
    """Return `RowMoments` of all rows, [M, G, G] and [M, G], but for those of ones, which they share."""
    hessian, sums, ones = moments
    groups = sums.shape[1]
    size = len(sums) // groups
    mixed = np.empty((len(centered), groups, groups))
    for g in range(groups):
        own = slice(g * size, (g + 1) * size)
        mixed[:, g] = centered[:, own] @ sums[own]
    pulls = group_dots(centered, errors @ hessian, size)
    ones_pulls = (errors @ sums).astype(np.float64)
    codes = squares_of_groups(centered, hessian, groups)
    return RowMoments(codes, mixed, ones, pulls, ones_pulls)


@inlined
def _row_of(products, i):
    """Return the `RowMoments` of row i."""
    of_codes = products.codes[i], products.mixed[i]
    return RowMoments(*of_codes, products.ones, products.pulls[i], products.ones_pulls[i])


@task_kernel
def _search_rows(counter, products, given, range_of_zeros, found):
    """Split: workers take rows."""
    rows, groups = products.pulls.shape
    old, steps, moves = np.empty(groups), np.empty(groups), np.empty(groups, np.int64)
    i = fetch_add(counter)
    while i < rows:
        row = _row_of(products, i)
        scales, zeros = given.scales[i], given.zeros[i]
        new_scales, new_zeros = found.scales[i], found.zeros[i]
        for g in range(groups):
            old[g] = widen(scales[g])
        fit_zeros(row, old, zeros, range_of_zeros, steps, moves)
        same_signs = True
        for g in range(groups):
            new_scales[g] = narrow(old[g] + steps[g], new_scales[g])
            steps[g] = float(widen(new_scales[g])) - old[g]
            same_signs &= same_sign(float(widen(new_scales[g])), old[g])
        better = same_signs and lowers_loss_with_zeros(row, old, steps, moves)
        for g in range(groups):
            if not better:
                new_scales[g] = scales[g]
            new_zeros[g] = zeros[g] + (moves[g] if better else 0)
        i = fetch_add(counter)


@task_kernel
def _follow_rows(counter, products, given, found):
    """Split: workers take rows."""
    rows, groups = products.pulls.shape
    now, steps, moves = np.empty(groups), np.empty(groups), np.empty(groups, np.int64)
    i = fetch_add(counter)
    while i < rows:
        for g in range(groups):
            now[g] = widen(found.scales[i, g])
            steps[g] = now[g] - float(widen(given.scales[i, g]))
            moves[g] = np.int64(found.zeros[i, g]) - np.int64(given.zeros[i, g])
        follow(_row_of(products, i), now, steps, moves)
        i = fetch_add(counter)
