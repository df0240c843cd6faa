"""16-bit floats inside kernels.

Numba has no arithmetic on float16 and no bfloat16 on the CPU, so 16-bit floats are passed to kernels
as integers of the same width: float16 as uint16, bfloat16 as int16. `widen` decodes one element,
`widen_block` some rows, `narrow` encodes one element, and `carrier` makes the integer view. No whole
array is ever copied to a wider type.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic, overload, register_jitable
from numpy.typing import NDArray

FLOAT16 = np.dtype(np.float16)
BFLOAT16_BITS = np.uint32(16)


@functools.cache  # the name of a dtype is slow
def is_bfloat16(dtype: np.dtype) -> bool:
    """Return whether `dtype` is bfloat16, by name so that ml_dtypes stays optional."""
    return dtype.name == "bfloat16"


@functools.cache
def bfloat16() -> np.dtype:
    """Return bfloat16's dtype, from the package ml_dtypes."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def carrier(array: NDArray) -> NDArray:
    """View `array` as the dtype that kernels take: 16-bit floats as integers, others unchanged."""
    if array.dtype == FLOAT16:
        return array.view(np.uint16)
    if is_bfloat16(array.dtype):
        return array.view(np.int16)
    return array


def magnitude_bits(array: NDArray) -> NDArray:
    """View floats as signed integers of their width, sign bit included.

    With the sign bit masked off, IEEE 754 floats of any width have the order of their bits, infinity
    above every finite value and NaN above infinity: an integer maximum is a maximum that keeps NaN.
    """
    return array.view(np.dtype(f"i{array.dtype.itemsize}"))


@functools.cache
def magnitude_mask(dtype: np.dtype) -> np.integer:
    """All bits of an integer `dtype` except the sign: see `magnitude_bits`."""
    return dtype.type(np.iinfo(dtype).max)


def infinity_bits(dtype: np.dtype) -> np.integer:
    """Bits of +inf in `dtype`: a value is finite if and only if its magnitude bits are below."""
    return limit_bits(math.inf, dtype)


@functools.lru_cache(maxsize=256)
def limit_bits(limit: float, dtype: np.dtype) -> np.integer:
    """Bits of a positive limit in `dtype`; infinity's if it overflows `dtype`."""
    with np.errstate(over="ignore"):
        return magnitude_bits(np.array([limit]).astype(dtype))[0]


def widen(x):
    """Return one element of a carrier array as a float: float32, or float64 for float64."""
    if x.dtype == np.uint16:
        return np.float32(x.view(np.float16))
    if x.dtype == np.int16:
        return (np.uint32(x.view(np.uint16)) << BFLOAT16_BITS).view(np.float32)
    return x


@register_jitable
def widen_block(source, top, left, target):
    """Fill `target` with a block of a carrier matrix that starts at row `top` and column `left`."""
    rows, width = target.shape
    for i in range(rows):
        row, given = target[i], source[top + i, left : left + width]
        for j in range(width):
            row[j] = widen(given[j])


def narrow(x, element):
    """Return float `x`, rounded to nearest, as an element of the carrier type of `element`."""
    if element.dtype == np.uint16:
        return np.float16(x).view(np.uint16)
    if element.dtype == np.int16:
        return _nearest_bfloat16(x).view(np.int16)
    return element.dtype.type(x)


@register_jitable
def _nearest_bfloat16(x):
    """Bits of the nearest bfloat16, ties to even, of a float that is not NaN."""
    bits = np.float32(x).view(np.uint32)
    last = np.uint32(np.uint32(bits >> BFLOAT16_BITS) & np.uint32(1))
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + last) >> BFLOAT16_BITS)


@intrinsic
def _half_to_float(typing_context, x):
    """`fpext half to float`: vcvtph2ps on x86 with F16C, cvt.f32.f16 on NVIDIA GPUs."""

    def generate(context, builder, signature, arguments):
        half = builder.bitcast(arguments[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return types.float32(types.uint16), generate


@overload(widen)
def _widen(x):
    if x == types.uint16:
        return lambda x: _half_to_float(x)
    if x == types.int16:
        return lambda x: np.uint32(np.uint32(np.uint16(x)) << BFLOAT16_BITS).view(np.float32)
    if isinstance(x, types.Float):
        return lambda x: x
    return None


@intrinsic
def _float_to_half(typing_context, x):
    """`fptrunc float to half`, half-to-even: vcvtps2ph on x86 with F16C, cvt.rn.f16.f32 on NVIDIA GPUs."""

    def generate(context, builder, signature, arguments):
        half = builder.fptrunc(arguments[0], ir.HalfType())
        return builder.bitcast(half, ir.IntType(16))

    return types.uint16(types.float32), generate


@overload(narrow)
def _narrow(x, element):
    if element == types.uint16:
        return lambda x, element: _float_to_half(np.float32(x))
    if element == types.int16:
        return lambda x, element: np.int16(_nearest_bfloat16(x))
    if element == types.float32:
        return lambda x, element: np.float32(x)
    return lambda x, element: np.float64(x)
