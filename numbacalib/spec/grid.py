"""The quantization grid: one definition for both targets.

Codes are integers in ``[low, high]``; the range of a group always includes 0, so 0 is exact.

- asymmetric: ``scale = (hi - lo) / levels``, ``zero = clip(rint(-lo / scale), 0, levels)``,
  codes in ``[0, levels]``;
- symmetric: ``scale = 2 max|w| / levels``, ``zero = 0``, codes in
  ``[-2**(bits - 1), 2**(bits - 1) - 1]``;
- symmetric over its full range: ``scale = extreme / -2**(bits - 1)`` with the weight of the largest
  magnitude, whose sign decides that of the scale, so that it falls on the end of the longer side
  (llama.cpp's Q4_0: https://github.com/ggml-org/ggml, ``quantize_row_q4_0_ref``);

with ``levels = 2**bits - 1``, ``code = clip(rint(w / scale) + zero, low, high)`` and
``value = (code - zero) * scale``. A group that is all zeros has ``scale = 1``.

A grid that a format has fixed may have a real zero, such as the ``minimum / scale`` of one whose
``value = scale * code - minimum``, and a negative scale: the code is then
``clip(rint(w / scale + fraction) + whole, low, high)`` with the two parts of the zero, which includes
integer zeros.

Codes may also be small floating-point numbers of either sign: see `numbacalib.spec.small_floats`. A code
then stands for one of the points 0, 0.5, 1, 1.5, 2, 3, 4, 6 instead of an integer; the grid is symmetric,
``value = point * scale``, and a group's scale is ``max|w| / 6``.

Quotients are formed before rounding and products kept out of the sums that decide a tie, since a
device compiler may contract ``a * b + c`` and move the tie.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.core.extending import overload

from numbacalib.runtime.jit import inlined, scalar
from numbacalib.spec.scalars import rint, round_mantissa
from numbacalib.spec.small_floats import LEAST, MOST, code_of_point, nearest_point, point_of_code

INTEGER, E2M1 = "int", "e2m1"
ELEMENTS = INTEGER, E2M1
"""Kinds of codes: integers of 2 to 8 bits, and floating-point numbers of 4."""

SCALE_EXACT = 0
"""Scales stay in the accumulators' type."""
SCALE_FLOAT16 = 1
"""Scales are rounded to what float16 can store (10 mantissa bits, subnormals of 2**-24)."""
SCALE_BFLOAT16 = 2
"""Scales are rounded to what bfloat16 can store (7 mantissa bits, subnormals of 2**-133)."""

SCALE_FLOAT32 = 3
"""Scales are rounded to what float32 can store: differs from `SCALE_EXACT` for float64 accumulators."""


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Return the least and the greatest code, ``(low, high)``."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if symmetric else (0, (1 << bits) - 1)


class Bounds(NamedTuple):
    """A grid in the form that kernels take, in the type of the weights."""

    low: Any
    """Least code."""
    high: Any
    """Greatest code."""
    levels: Any
    """Steps from `low` to `high`."""
    symmetric: bool
    storage: int
    """Rounding of scales: `SCALE_EXACT` or another."""
    full_range: bool = False
    """True if a symmetric grid spans its longer side, with scales of either sign."""


class FloatBounds(NamedTuple):
    """Bounds of a grid whose points are small floating-point numbers, with the fields of `Bounds`."""

    low: Any
    high: Any
    levels: Any
    symmetric: bool
    storage: int
    least: Any
    """Least point above 0."""
    full_range: bool = False


def has_float_points(bounds):
    """Return whether a grid's points are floating-point numbers; a constant in compiled code."""
    return isinstance(bounds, FloatBounds)


@overload(has_float_points)
def _has_float_points(bounds):
    found = bounds.instance_class is FloatBounds
    return lambda bounds: found


def least_point(bounds):
    """Return the least point of a grid above 0, as a multiple of the scale."""
    return bounds.least if isinstance(bounds, FloatBounds) else bounds.levels / bounds.levels


@overload(least_point)
def _least_point(bounds):
    if bounds.instance_class is FloatBounds:
        return lambda bounds: bounds.least
    return lambda bounds: bounds.levels / bounds.levels


@scalar
def group_scale(lo, hi, bounds):
    """Scale of a group whose weights span ``[lo, hi]``, ``lo <= 0 <= hi``, in their own type."""
    if bounds.full_range:
        scale = (lo if -lo >= hi else hi) / bounds.low
    else:
        span = max(-lo, hi) + max(-lo, hi) if bounds.symmetric else hi - lo
        scale = span / bounds.levels
    return scale if scale != 0 else bounds.levels / bounds.levels


@scalar
def stored_scale(scale, storage):
    """Round `scale` to the storage type, never to 0: codes are chosen against what is stored."""
    size = abs(scale)
    if storage == SCALE_FLOAT16:
        size = round_mantissa(size, 10, 2.0**-24)
    elif storage == SCALE_BFLOAT16:
        size = round_mantissa(size, 7, 2.0**-133)
    elif storage == SCALE_FLOAT32:
        size = round_mantissa(size, 23, 2.0**-149)
    return size if scale > 0 else -size


@inlined
def group_zero(lo, scale, bounds):
    """Zero point of a group, an integer in the weights' type; 0 on the symmetric grid."""
    levels = bounds.levels
    return levels - levels if bounds.symmetric else rint(min(-lo / scale, levels))


@scalar
def stored_grid(lo, hi, bounds):
    """Scale, as it is stored, and zero point of a group whose weights span ``[lo, hi]``."""
    scale = stored_scale(group_scale(lo, hi, bounds), bounds.storage)
    return scale, group_zero(lo, scale, bounds)


@scalar
def clipped_grid(lo, hi, share, bounds):
    """`stored_grid` of a group that is clipped to a share of its largest magnitude."""
    limit = share * max(-lo, hi)
    return stored_grid(max(lo, -limit), min(hi, limit), bounds)


@inlined
def code_of(weight, scale, zero, bounds):
    """Code of one weight: the nearest point of the grid, ties to even, clipped to its ends."""
    return code_at(weight / scale, zero, bounds)


@inlined
def code_at(quotient, zero, bounds):
    """Code of a weight that is `quotient` scales, in its type.

    The whole part of the zero point is added after rounding, so that ties go to even quotients. The
    position is clipped to integers before rounding, so that `rint` stays in its domain.
    """
    if has_float_points(bounds):
        code = nearest_point(min(max(quotient, bounds.low), bounds.high), least_point(bounds))
    else:
        whole = rint(zero)
        position = quotient + (zero - whole)
        code = rint(min(max(position, bounds.low - whole), bounds.high - whole)) + whole
    return code


@inlined
def unsigned(code, bounds):
    """Code as it is stored: less the grid's least code, or the bits of a floating-point number."""
    if has_float_points(bounds):
        return np.uint8(code_of_point(code, least_point(bounds)))
    return np.uint8(code - bounds.low)


@inlined
def signed(stored, bounds):
    """Undo `unsigned`."""
    if has_float_points(bounds):
        return point_of_code(stored, least_point(bounds))
    return stored + bounds.low


@inlined
def value_of(code, scale, zero):
    """Weight that a code stands for."""
    return (code - zero) * scale


@inlined
def is_clipped(weight, scale, zero, bounds):
    """Return whether a weight lies more than one step past the ends of a grid with unsigned codes."""
    position = weight / scale + zero
    step = least_point(bounds)
    if has_float_points(bounds):
        step *= 4
    return position < bounds.low - step or position > bounds.high + step


def group_indices(channels: int, group_size: int) -> np.ndarray:
    """Group of each input channel when groups are runs of `group_size` channels, int64 [K]."""
    return np.arange(channels, dtype=np.int64) // group_size


class Grid(NamedTuple):
    """Settings of a grid; `bounds` gives them to kernels in the type of the weights."""

    bits: int
    symmetric: bool
    storage: int = SCALE_EXACT
    full_range: bool = False
    element: str = INTEGER
    """One of `ELEMENTS`."""

    @property
    def offset(self) -> int:
        """Number that is subtracted from zero points, and from integer codes, to store them."""
        return code_range(self.bits, self.symmetric)[0] if self.element == INTEGER else 0

    def bounds(self, dtype: np.dtype) -> Bounds | FloatBounds:
        """Return the grid in the type of the weights."""
        if self.element == E2M1:
            reach = dtype.type(-MOST), dtype.type(MOST), dtype.type(2 * MOST)
            return FloatBounds(*reach, True, self.storage, dtype.type(LEAST), False)
        low, high = code_range(self.bits, self.symmetric)
        ends = dtype.type(low), dtype.type(high), dtype.type(high - low)
        return Bounds(*ends, self.symmetric, self.storage, self.full_range)
