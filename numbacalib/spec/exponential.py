"""The exponential function in float32, with the same operations on both targets.

Range reduction and a polynomial, as in Cody and Waite, "Software Manual for the Elementary Functions"
(1980), chapter 6: ``e**x = 2**n * e**r`` with ``n = rint(x / ln 2)``, and ``r = x - n ln 2`` found with
ln 2 in two parts, of which the first has so few bits that its product with n is exact. The compiler
vectorizes loops over it, but not over the C library's function.
"""

from __future__ import annotations

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.spec.scalars import rint

LOWEST, HIGHEST = np.float32(-87.33), np.float32(88.02)
"""Below, the result is 0 (it would be subnormal); above, infinity, a little early: n is at most 127."""
INVERSE_LN2 = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440054690583e-4)
C2, C3, C4, C5, C6, C7 = (np.float32(1 / n) for n in (2, 6, 24, 120, 720, 5040))
"""Coefficients of the series; with |r| <= 0.347 the omitted terms are below 8e-9 of the result."""


@scalar
def exp(x):
    """``e**x`` of a float32, within 2 ulp; NaN stays NaN."""
    clipped = min(max(x, LOWEST), HIGHEST)
    n = rint(clipped * INVERSE_LN2)
    r = (clipped - n * LN2_HIGH) - n * LN2_LOW
    series = C2 + r * (C3 + r * (C4 + r * (C5 + r * (C6 + r * C7))))
    value = np.float32(1) + (r + r * r * series)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    value = value * power
    if x < LOWEST:
        value = np.float32(0)
    if x > HIGHEST:
        value = np.float32(np.inf)
    return value if x == x else x
