"""The distribution function of the standard normal distribution in float32, by the same operations on both
targets.

With ``a = |x|``, the tail beyond a is ``e**(-a**2 / 2) m(a)``, where m falls from 1/2, in the end as
``1 / a`` does: a polynomial in ``a / (a + 4)``, which is between 0 and 1. The separate exponential and this
variable, up to a linear map, are those of Schonfelder, "Chebyshev Expansions for the Error and Related
Functions" (1978). The coefficients are a minimax fit of our own up to a = 14, with m(0) = 1/2 exact, whose
relative error is below 2e-8. The compiler vectorizes loops over it, but not over the C library's error
function, and far to the left it loses no digits to ``1 + erf``.
"""

from __future__ import annotations

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.spec.exponential import exp

FARTHEST = np.float32(14)
"""From here on the tail is 0 in float32."""
C1, C2, C3, C4, C5, C6, C7, C8, C9 = (
    np.float32(coefficient)
    for coefficient in (
        -1.5957683,
        2.4042046,
        -2.1062255,
        0.8702444,
        0.1090654,
        -0.20836633,
        -0.0492833,
        0.11028897,
        -0.03418183,
    )
)


@scalar
def normal_cdf(x):
    """Probability of a value below x, within 1e-7; NaN stays NaN."""
    a = FARTHEST if abs(x) > FARTHEST else abs(x)
    v = a / (a + np.float32(4))
    series = C4 + v * (C5 + v * (C6 + v * (C7 + v * (C8 + v * C9))))
    series = np.float32(0.5) + v * (C1 + v * (C2 + v * (C3 + v * series)))
    tail = exp(np.float32(-0.5) * a * a) * series
    return tail if x < np.float32(0) else np.float32(1) - tail
