"""Reductions of columns by GPU kernels: sums of powers, and largest magnitudes, by device functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import widen
from numbacalib.spec.awq import magnitude
from numbacalib.spec.fisher import squared


class Reduction(NamedTuple):
    """Device functions of a reduction."""

    decode: Callable
    """Takes an element as it lies in memory."""
    accumulate: Callable
    """Takes a total and a decoded element."""
    merge: Callable
    """Takes two totals."""
    finish: Callable
    """Takes a total and the caller's divisor."""


@cuda.jit(device=True)
def add(total, other):
    """Merge sums."""
    return total + other


@cuda.jit(device=True)
def larger(total, other):
    """Merge magnitudes."""
    return max(total, other)


@cuda.jit(device=True)
def same(x):
    return x


@cuda.jit(device=True)
def _widened(x):
    return widen(x)


@cuda.jit(device=True)
def _add_square(total, x):
    return total + squared(x)


@cuda.jit(device=True)
def _add_magnitude(total, x):
    return total + magnitude(x)


@cuda.jit(device=True)
def _quotient(total, divisor):
    return total / divisor


@cuda.jit(device=True)
def total_alone(total, _):
    return total


@functools.cache
def float_of(element: type) -> Callable:
    """Build the device function that makes a float of what `peaks` found for a carrier's `element`."""
    if element in (np.uint16, np.int16):

        @cuda.jit(device=True)
        def value(bits):
            return widen(element(bits))
    else:

        @cuda.jit(device=True)
        def value(bits):
            return bits.view(element)

    return value


SQUARES = Reduction(_widened, _add_square, add, _quotient)
"""Sum of squares of a carrier, over the divisor."""
MAGNITUDES = Reduction(_widened, _add_magnitude, add, _quotient)
"""Sum of magnitudes of a carrier, over the divisor."""
VALUES = Reduction(_widened, add, add, _quotient)
"""Sum of a carrier, over the divisor."""


@functools.cache
def peaks(dtype: np.dtype) -> Reduction:
    """Largest magnitude, as bits, of integers that `magnitude_bits` gave; NaN is above all.

    Totals are int64 for float64, else int32.
    """
    mask = (np.int64 if dtype.itemsize == 8 else np.int32)(np.iinfo(dtype).max)

    @cuda.jit(device=True)
    def larger_magnitude(total, bits):
        return max(total, bits & mask)

    return Reduction(same, larger_magnitude, larger, total_alone)
