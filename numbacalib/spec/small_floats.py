"""Small floating-point numbers, in which FP4 formats store weights and their scales.

A code of E2M1 has 4 bits, a sign, two of exponent and one of mantissa: its points are 0, 0.5, 1, 1.5, 2,
3, 4, 6 and their negatives. Groups of them share a scale that is a floating-point number itself:

- MXFP4: groups of 32, a power of two (E8M0);
- NVFP4: groups of 16, a number of 4 bits of exponent and 3 of mantissa (E4M3), divided by one float32
  number for a whole tensor, its global scale.

Rounding is to nearest, ties to the even mantissa, and saturates. Sources: OCP Microscaling Formats (MX)
Specification v1.0, sections 5.3 and 6 (E2M1, E8M0); Micikevicius et al., "FP8 Formats for Deep Learning"
(2022), table 1 (E4M3); NVFP4 as compressed-tensors stores it
(https://github.com/vllm-project/compressed-tensors).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.core.extending import register_jitable
from numpy.typing import NDArray

from numbacalib.runtime.jit import inlined
from numbacalib.spec.scalars import rint

LEAST, MOST = 0.5, 6.0
"""Least point of E2M1 above 0, which is also the step between the smallest ones; and the largest point."""
BITS = 4
POINTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Points of E2M1 by their code, without the sign, which is the bit above."""

# a group's largest weight may pass 6 by half a step towards 8 before its MX scale doubles
_REACH = 7.0
_E8M0_BIAS = 127
_E4M3_BIAS = 7


@inlined
def nearest_point(position, least):
    """Nearest point of E2M1 to a number within its ends, ties to the even mantissa; `least` is `LEAST`."""
    one = least + least
    two = one + one
    size, step = abs(position), least
    if size >= two:
        step = one
    if size >= two + two:
        step = two
    return rint(position / step) * step


@inlined
def code_of_point(point, least):
    """Code of a point, 0 to 15, in the point's type; 0 has no sign."""
    one = least + least
    two = one + one
    four = two + two
    size = abs(point)
    code = size / least
    if size >= two:
        code = size + two
    if size >= four:
        code = size / two + four
    return code + four + four if point < 0 else code


@inlined
def point_of_code(code, least):
    """Point that a code stands for, in the type of `least`."""
    size = least if code & 1 else least - least
    if code & 6:
        size += least + least
    if code & 4:
        size += size
    if (code & 6) == 6:
        size += size
    return -size if code & 8 else size


class ScaleType(NamedTuple):
    """Scales that a group may have, ascending, indexed by their codes."""

    values: NDArray[np.float32]
    """0 among them is never chosen."""
    limits: NDArray[np.float32]
    """Without a search, a group gets the first scale whose limit exceeds all its weights."""
    below: int
    """Codes below that scale's that a search tries."""
    above: int
    """Codes above it."""

    @property
    def one(self) -> int:
        """Code of 1, the scale of a group of zeros."""
        return int(np.searchsorted(self.values, 1))

    def steps(self) -> NDArray[np.int64]:
        """Numbers that a search adds to a code, the nearest first: of equal losses the first is kept."""
        every = np.arange(-self.below, self.above + 1)
        return every[np.argsort(np.abs(every), kind="stable")]


def e8m0() -> ScaleType:
    """Powers of two from 2**-127 to 2**127: code 255 is not a number."""
    values = np.ldexp(np.float32(1), np.arange(255) - _E8M0_BIAS)
    with np.errstate(over="ignore"):
        return ScaleType(values, np.float32(_REACH) * values, below=1, above=1)


def e4m3() -> ScaleType:
    """Numbers from 0 to 448, each the nearest to a sixth of any magnitude between its limits."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    normal = np.ldexp(np.float32(8) + mantissa, exponent - _E4M3_BIAS - 3)
    values = np.where(exponent > 0, normal, np.ldexp(mantissa, -_E4M3_BIAS - 2)).astype(np.float32)
    middles = np.float32(MOST) * np.append((values[:-1] + values[1:]) / 2, np.inf)
    even = np.nextafter(middles, np.float32(np.inf))  # half-way goes to the even code
    limits = np.where(code % 2 == 0, even, middles).astype(np.float32)
    limits[0] = 0
    return ScaleType(values, limits, below=4, above=6)


class Fp4(NamedTuple):
    """Layout of a group in one of the FP4 formats."""

    group_size: int
    scales: ScaleType
    global_scale: bool
    """True if one number for a tensor divides all scales."""


MXFP4 = Fp4(32, e8m0(), global_scale=False)
NVFP4 = Fp4(16, e4m3(), global_scale=True)
FP4 = {"mxfp4": MXFP4, "nvfp4": NVFP4}
"""The FP4 formats by name."""


def nvfp4_global_scale(largest: float) -> np.float32:
    """Global scale of a tensor with the largest magnitude `largest`, whose group gets the largest scale."""
    most = np.float32(NVFP4.scales.values[-1] * np.float32(MOST))
    if largest == 0:
        return np.float32(1)
    with np.errstate(over="ignore"):
        return np.minimum(most / np.float32(largest), np.finfo(np.float32).max)


@register_jitable
def first_scale(largest, limits):
    """Code of the first scale whose limit is above the largest magnitude of a group, or of the last one."""
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        if largest < limits[middle]:
            high = middle
        else:
            low = middle + 1
    return low
