"""Best scales of a row for given codes: the loss is quadratic in them.

With ``c_g`` the codes less the zero of group g (0 elsewhere), ``q = sum_g s_g c_g`` is the row and
``(w - q) H (w - q)^T`` its loss. A step d of the scales changes that by ``d A d^T - 2 r d^T``, where
``A_gh = c_g H c_h^T`` and ``r_g = c_g H (w - q)^T``, so the best is ``d = A^-1 r``.

"Scales refitted after rounding", arXiv 2602.02126 (for one scale a row); here for groups, and solved for
the step, whose right-hand side keeps its precision when the old scales are nearly the best.
"""

from __future__ import annotations

import math

from numbacalib.runtime.half import narrow, widen
from numbacalib.runtime.jit import scalar

LEAST_PIVOT = 1e-5
"""Least pivot, as a share of its diagonal entry: below, rounding of float32 products decides the step."""
NOISE = 1e-6
"""Least fall of the loss, as a share of the summed terms, that is more than their own rounding."""


@scalar
def refit_row(matrix, pulls, scales, found, memory):
    """Set `found` to scales [G] of a row that lose less, or to the old ones.

    `matrix` [G, G] has A in its upper triangle and is overwritten below it, `pulls` [G] is r. `scales` and
    `found` are of a storage type's carrier, which the new scales are rounded to before their loss is
    compared. `memory` is scratch, two float64 arrays [G].
    """
    steps, roots = memory
    solve_steps(matrix, pulls, steps, roots)
    if not (round_steps(scales, steps, found) and lowers_loss(matrix, pulls, steps)):
        for g in range(len(pulls)):
            found[g] = scales[g]


@scalar
def solve_steps(matrix, pulls, steps, roots):
    """Solve ``A d = r`` by Cholesky; a group with a pivot too small, or with codes all 0, keeps its scale.

    `matrix` [G, G] has A in its upper triangle, diagonal included, and gets its factor below. `pulls` [G]
    is r, `steps` [G] becomes d, `roots` [G] is scratch.
    """
    groups = len(pulls)
    for g in range(groups):
        pivot = matrix[g, g]
        pull = pulls[g]
        for k in range(g):
            pivot -= matrix[g, k] * matrix[g, k]
            pull -= matrix[g, k] * steps[k]
        root = 1 / math.sqrt(pivot) if pivot > LEAST_PIVOT * matrix[g, g] else 0.0
        roots[g] = root
        steps[g] = pull * root
        for h in range(g + 1, groups):
            total = matrix[g, h]
            for k in range(g):
                total -= matrix[h, k] * matrix[g, k]
            matrix[h, g] = total * root
    for back in range(groups):
        g = groups - 1 - back
        total = steps[g]
        for h in range(g + 1, groups):
            total -= matrix[h, g] * steps[h]
        steps[g] = total * roots[g]


@scalar
def round_steps(scales, steps, found):
    """Set `found` [G] to ``scales + steps`` as stored, and `steps` to what that leaves of them.

    Returns whether all scales keep their signs. One whose step would change its sign stays; rounding to
    the storage type may make 0 of a scale.
    """
    same_signs = True
    for g in range(len(steps)):
        scale = widen(scales[g])
        wanted = scale + steps[g]
        found[g] = narrow(wanted if same_sign(wanted, scale) else float(scale), found[g])
        steps[g] = float(widen(found[g])) - float(scale)
        same_signs &= same_sign(widen(found[g]), scale)
    return same_signs


@scalar
def same_sign(left, right):
    """Return whether two numbers are on one side of 0; False for NaN."""
    return (left > 0 and right > 0) or (left < 0 and right < 0)


@scalar
def lowers_loss(matrix, pulls, steps):
    """Return whether steps [G] of the scales lower the row's loss; False if a step is not finite."""
    change = 0.0
    size = 0.0
    for g in range(len(pulls)):
        linear = 2 * steps[g] * pulls[g]
        square = matrix[g, g] * steps[g] * steps[g]
        change += square - linear
        size += square + abs(linear)
        for h in range(g + 1, len(pulls)):
            mixed = 2 * matrix[g, h] * steps[g] * steps[h]
            change += mixed
            size += abs(mixed)
    return change < -NOISE * size
