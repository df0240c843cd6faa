"""Search of a group's clipping range: the shares of the full range that are tried, and their error.

Clipping a few large weights buys a finer grid for all the others. Candidate i keeps the share
``1 - i / points`` of the range ``[lo, hi]``, as long as more than `least` is left; the best one has
the least ``sum_j importance[j] * |w[j] - value[j]| ** norm``; of equals, the widest.

The defaults are those of the code that came with Frantar et al., "GPTQ" (2022).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from numbacalib.runtime.jit import scalar


class RangeSearch(NamedTuple):
    """Settings of the search."""

    points: int = 100
    """Steps from the full range to nothing."""
    least: float = 0.2
    """Share of the range at which the search stops."""
    norm: float = 2.4
    """Power of the errors that are summed."""
    full_range: bool = False
    """Let the weight of the largest magnitude of a symmetric group fall on the longer side of its grid,
    whose scale then has either sign: see `numbacalib.spec.grid`."""

    def shares(self, dtype: np.dtype) -> np.ndarray:
        """Shares of the full range to try, falling from 1."""
        count = max(1, round((1 - self.least) * self.points))
        return (1 - np.arange(count) / self.points).astype(dtype)


@scalar
def power(x, exponent):
    """``x ** exponent`` for ``x >= 0`` in float32, to about 20 bits: enough to rank candidates.

    Straight-line arithmetic, which the compiler vectorizes; the library's `powf` is one call an
    element. ``x = m * 2**e`` with m around 1, ``log2(m) = 2 / ln(2) * artanh((m - 1) / (m + 1))``
    by its series, and ``2**(n + f)`` by the series of ``exp(f * ln(2))`` and n in the exponent bits.
    """
    bits = np.float32(x).view(np.int32)
    e = np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23)  # m in [sqrt(1/2), sqrt(2))
    m = np.int32(bits - np.int32(e << np.int32(23))).view(np.float32)
    t = (m - np.float32(1)) / (m + np.float32(1))
    s = t * t
    series = np.float32(0.4121986)
    series = series * s + np.float32(0.5770780)
    series = series * s + np.float32(0.9617967)
    series = series * s + np.float32(2.8853901)
    y = np.float32(exponent) * (np.float32(e) + t * series)
    y = min(max(y, np.float32(-126)), np.float32(127))
    shift = np.float32(1.5 * 2.0**23)
    n = (y + shift) - shift
    f = y - n
    series = np.float32(1.5403530e-4)
    series = series * f + np.float32(1.3333558e-3)
    series = series * f + np.float32(9.6181291e-3)
    series = series * f + np.float32(5.5504109e-2)
    series = series * f + np.float32(2.4022651e-1)
    series = series * f + np.float32(6.9314718e-1)
    series = series * f + np.float32(1)
    return series * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@scalar
def weighted_cost(error, norm, importance):
    """Cost of the error of one weight, a term of a candidate's sum, in the error's type."""
    if norm == 2:
        return importance * (error * error)
    return importance * power(abs(error), norm)
