"""Best integer zeros of a row for given codes, each with its best scale.

With ``c_g`` the codes less the old zero and ``u_g`` ones, both 0 outside of group g, scales x and
zeros that move by integers d give ``q = sum_g x_g (c_g - d_g u_g)``. For one group, all others fixed, the
loss is least at ``x = n / m``, ``n**2 / m`` below that at 0, with

    n = (c_g - d u_g) H p^T,   m = (c_g - d u_g) H (c_g - d u_g)^T,   p = w less the other groups' q,

so that all zeros can be compared. Groups are swept until none changes; for a row of one group the result
is optimal. A real zero needs no search: see `numbacalib.methods.refit`.

Scales are solved for before and after, as in `spec.scale_refit`. All steps use the same few products,
which are updated as the grid changes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numbacalib.runtime.half import widen
from numbacalib.runtime.jit import scalar
from numbacalib.spec.scale_refit import LEAST_PIVOT, NOISE, round_steps

SWEEPS = 8
"""Most sweeps over the groups."""


class GroupMoments(NamedTuple):
    """A Hessian and its sums over groups, which are runs of K / G channels."""

    hessian: Any
    """[K, K]."""
    sums: Any
    """Sums over the columns of each group, [K, G]."""
    ones: Any
    """Sums of those over the rows of each group, [G, G]."""


class RowMoments(NamedTuple):
    """Products of a row's centered codes c, of ones u, and of its error e, by the Hessian."""

    codes: Any
    """``c H c^T`` [G, G], of which the upper triangle is read."""
    mixed: Any
    """``c H u^T`` [G, G]."""
    ones: Any
    """``u H u^T`` [G, G]."""
    pulls: Any
    """``c H e^T`` [G]."""
    ones_pulls: Any
    """``u H e^T`` [G]."""


@scalar
def better_grid(row, grid, range_of_zeros, found, memory, moves):
    """Set `found` to (scales, zeros) [G] of a row that lose less, or to those of `grid`.

    `row` is `RowMoments` with `grid`; scales are of a storage type's carrier, which the new ones are
    rounded to before their loss is compared. `range_of_zeros` is (least, most). `memory`, two float64
    arrays [G], and `moves`, int64 [G], are scratch.
    """
    (steps, old), (scales, zeros), (new_scales, new_zeros) = memory, grid, found
    for g in range(len(steps)):
        old[g] = widen(scales[g])
    fit_zeros(row, old, zeros, range_of_zeros, steps, moves)
    same_signs = round_steps(scales, steps, new_scales)
    better = same_signs and lowers_loss_with_zeros(row, old, steps, moves)
    for g in range(len(steps)):
        if not better:
            new_scales[g] = scales[g]
        new_zeros[g] = zeros[g] + (moves[g] if better else 0)


@scalar
def follow_grid(row, old, new, memory, moves):
    """Update `RowMoments` of a row from old to new (scales, zeros); the rest is as for `better_grid`."""
    (steps, now), (scales, zeros), (new_scales, new_zeros) = memory, old, new
    for g in range(len(steps)):
        now[g] = widen(new_scales[g])
        steps[g] = now[g] - widen(scales[g])
        moves[g] = np.int64(new_zeros[g]) - np.int64(zeros[g])
    follow(row, now, steps, moves)


@scalar
def fit_zeros(row, scales, zeros, range_of_zeros, steps, moves):
    """Find scales ``scales + steps``, and zeros ``zeros + moves`` within a range (least, most).

    `row` is `RowMoments` with the old scales [G] and zeros [G]; `steps` and `moves` [G] get the result.
    """
    (matrix, mixed, ones, pulls, ones_pulls), (least, most) = row, range_of_zeros
    groups = len(pulls)
    for g in range(groups):
        steps[g] = 0.0
        moves[g] = 0
    for _ in range(SWEEPS):
        changed = False
        for g in range(groups):
            # c_g H p^T and u_g H p^T
            pull = pulls[g] + matrix[g, g] * scales[g]
            ones_pull = ones_pulls[g] + mixed[g, g] * scales[g]
            for h in range(groups):
                if h != g:
                    offset = (scales[h] + steps[h]) * moves[h]
                    both = matrix[g, h] if g < h else matrix[h, g]
                    pull += mixed[g, h] * offset - both * steps[h]
                    ones_pull += ones[g, h] * offset - mixed[h, g] * steps[h]
            square, cross, count = matrix[g, g], mixed[g, g], ones[g, g]
            best = moves[g]
            gain = gain_of(pull, ones_pull, square, cross, count, best, scales[g])
            needed = gain + NOISE * abs(gain)
            for zero in range(least, most + 1):
                move = zero - int(zeros[g])
                found = gain_of(pull, ones_pull, square, cross, count, move, scales[g])
                if found > needed:
                    gain = needed = found
                    best = move
            changed = changed or best != moves[g]
            moves[g] = best
            if gain > 0:
                length = square - 2 * best * cross + best * best * count
                steps[g] = (pull - best * ones_pull) / length - scales[g]
        if not changed:
            break


@scalar
def follow(row, scales, steps, moves):
    """Update `RowMoments` for a grid whose scales grew by `steps`, to `scales`, and zeros by `moves`."""
    matrix, mixed, ones, pulls, ones_pulls = row
    groups = len(pulls)
    for g in range(groups):
        for h in range(groups):
            offset = scales[h] * moves[h]
            both = matrix[g, h] if g < h else matrix[h, g]
            pulls[g] += mixed[g, h] * offset - both * steps[h]
            ones_pulls[g] += ones[g, h] * offset - mixed[h, g] * steps[h]
    for g in range(groups):
        pulls[g] -= moves[g] * ones_pulls[g]
        for h in range(g, groups):
            both = moves[h] * mixed[g, h] + moves[g] * mixed[h, g]
            matrix[g, h] += moves[g] * moves[h] * ones[g, h] - both
    for g in range(groups):
        for h in range(groups):
            mixed[g, h] -= moves[g] * ones[g, h]


@scalar
def gain_of(pull, ones_pull, square, cross, count, move, scale):
    """Fall of the loss when a group's zero moves by `move`; -1 where the scale would change its sign."""
    length = square - 2 * move * cross + move * move * count
    dot = pull - move * ones_pull
    if length <= LEAST_PIVOT * square or dot * scale <= 0:
        return -1.0
    return dot * dot / length


@scalar
def lowers_loss_with_zeros(row, scales, steps, moves):
    """Return whether steps [G] of the scales and moves [G] of the zeros lower the loss of `RowMoments`."""
    matrix, mixed, ones, pulls, ones_pulls = row
    change = 0.0
    size = 0.0
    for g in range(len(pulls)):
        offset = (scales[g] + steps[g]) * moves[g]
        linear = 2 * (steps[g] * pulls[g] - offset * ones_pulls[g])
        change -= linear
        size += abs(linear)
        for h in range(len(pulls)):
            other = (scales[h] + steps[h]) * moves[h]
            both = matrix[g, h] if g <= h else matrix[h, g]
            term = (
                steps[g] * (both * steps[h] - 2 * mixed[g, h] * other) + offset * ones[g, h] * other
            )
            change += term
            size += abs(term)
    return change < -NOISE * size
