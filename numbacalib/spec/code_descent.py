"""Codes chosen again, one at a time, while all others of the row stay: coordinate descent.

The row's loss ``(w - q) H (w - q)^T`` is quadratic in one value ``q_j``, and least at ``q_j + p_j / H_jj``
with the pull ``p = (w - q) H``: the nearest point of the grid to it loses least. Taking it moves the pull
by ``-step * H_j``. Column after column, the loss falls with each code that changes.

Behdin et al., "QuantEase: Optimization-based Quantization for Language Models" (arXiv 2309.01885),
algorithm 1, with the pull kept instead of two products.
"""

from __future__ import annotations

from numbacalib.runtime.jit import scalar
from numbacalib.spec.grid import code_of, value_of


@scalar
def better_code(code, pull, curvature, scale, zero, bounds):
    """Code that loses least while all others stay: `code` itself unless the loss falls.

    `curvature` is the Hessian's diagonal entry, above 0; all are of one float type.
    """
    here = value_of(code, scale, zero)
    best = code_of(here + pull / curvature, scale, zero, bounds)
    step = value_of(best, scale, zero) - here
    return best if step * (step * curvature - 2 * pull) < 0 else code
