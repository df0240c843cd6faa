"""Coordinate descent: codes of a row are chosen again, one at a time, while all others stay.

The row's loss ``(w - q) H (w - q)^T`` is quadratic in one value ``q_j``, and least at ``q_j + p_j / H_jj``
with the pull ``p = (w - q) H``: the nearest point of the grid to it loses least. Taking it moves the pull
by ``-step * H_j``. Column after column, the loss falls with each code that changes.

In steps of the grid, of length s, the minimum is ``u = p_j / (H_jj s)`` away, and d steps change the loss
by ``H_jj s**2 d (d - 2 u)``: factors that do not depend on the pull are computed in advance.

Behdin et al., "QuantEase: Optimization-based Quantization for Language Models" (arXiv 2309.01885),
algorithm 1, with the pull kept up to date instead of two products.
"""

from __future__ import annotations

from numbacalib.runtime.jit import scalar
from numbacalib.spec.grid import code_at


@scalar
def steps_of_pull(curvature, scale, bounds):
    """Steps of the grid from a value to the least loss, for a pull of 1; 0 if there is no minimum.

    `curvature` is the Hessian's diagonal entry; all are of one float type.
    """
    area = curvature * scale
    steps = bounds.levels / (bounds.levels * area)
    found = curvature > 0 and abs(steps) * abs(area) <= 2  # neither is 0, infinite or NaN
    return steps if found else bounds.levels - bounds.levels


@scalar
def better_code(code, pull, steps, zero, bounds):
    """Code that loses least while all others stay: `code` itself unless the loss falls.

    `steps` are `steps_of_pull`.
    """
    wanted = pull * steps
    best = code_at(code - zero + wanted, zero, bounds)
    move = best - code
    return best if move * (move - (wanted + wanted)) < 0 else code
