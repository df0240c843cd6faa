"""Scalar primitives that NumPy or Numba lack on one of the targets, with one result on all.

Each is a Python function (which the CUDA simulator runs) with an overload for compiled code.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.extending import intrinsic, overload


def rint(x):
    """Round half to even, for |x| < 2**22 in float32 and |x| < 2**51 in float64.

    Adding and subtracting 1.5 * 2**23 (2**52) leaves no fractional bits, and the hardware's own
    rounding of the sum is half-to-even. Numba's CUDA target has no `np.rint`.
    """
    return np.rint(x)


@overload(rint)
def _rint(x):
    shift: np.floating
    if x == types.float32:
        shift = np.float32(1.5 * 2.0**23)
    elif x == types.float64:
        shift = np.float64(1.5 * 2.0**52)
    else:
        return None
    return lambda x: (x + shift) - shift


def round_mantissa(x, bits, tiniest):
    """Round positive `x` half to even to `bits` explicit mantissa bits, in x's own type.

    `tiniest` is the least positive number of the target format, which is also the spacing of its
    subnormals; the result is never below it. The division by the last bit that stays, a power of two, is
    exact, so that only `rint` rounds and only results beyond x's own type become infinite.
    """
    real = type(x)
    power = np.ldexp(real(1), np.frexp(x)[1] - 1)
    spacing = max(power / real(1 << bits), real(tiniest))
    return max(np.rint(x / spacing) * spacing, real(tiniest))


@overload(round_mantissa)
def _round_mantissa(x, bits, tiniest):
    real: type[np.floating]
    if x == types.float32:
        real, explicit = np.float32, 23
    elif x == types.float64:
        real, explicit = np.float64, 52
    else:
        return None
    infinity = real(np.inf)

    def rounded(x, bits, tiniest):
        if bits >= explicit or x == infinity:
            return x
        spacing = max(_power_of_two_below(x) / real(1 << bits), real(tiniest))
        return max(rint(x / spacing) * spacing, real(tiniest))

    return rounded


def _power_of_two_below(x):
    """Return ``2 ** floor(log2(x))`` for positive `x`: the exponent's bits alone."""
    raise NotImplementedError("compiled code only")


@overload(_power_of_two_below)
def _power_of_two_below_compiled(x):
    if x == types.float32:
        return lambda x: np.uint32(np.float32(x).view(np.uint32) & np.uint32(0x7F800000)).view(
            np.float32
        )
    return lambda x: np.uint64(np.float64(x).view(np.uint64) & np.uint64(0x7FF0000000000000)).view(
        np.float64
    )


def larger_magnitude(largest, bits):
    """Return the larger of `largest` and the magnitude of a float's `bits`, signed integers.

    In the integers' own width, which Numba's arithmetic would widen to 64 bits: see
    `numbacalib.runtime.half.magnitude_bits`.
    """
    return max(largest, bits & np.iinfo(bits.dtype).max)


@intrinsic
def _larger_magnitude(typing_context, largest, bits):
    def generate(context, builder, signature, arguments):
        mask = ir.Constant(arguments[1].type, (1 << (bits.bitwidth - 1)) - 1)
        magnitude = builder.and_(arguments[1], mask)
        larger = builder.icmp_signed(">", magnitude, arguments[0])
        return builder.select(larger, magnitude, arguments[0])

    return bits(bits, bits), generate


@overload(larger_magnitude)
def _larger_magnitude_compiled(largest, bits):
    return lambda largest, bits: _larger_magnitude(largest, bits)
