"""Vector instructions that Numba has no name for, as LLVM's vectors: any processor gets its own.

Where the next few numbers decide each other's branches, a processor guesses wrong every other time.
Vectors have no branches.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

LANES = 8
"""Numbers of a vector. Arrays must hold as many beyond the last element that counts."""

_REAL, _INTEGER, _POSITION = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_REALS, _INTEGERS = ir.VectorType(_REAL, LANES), ir.VectorType(_INTEGER, LANES)


@intrinsic
def least_quotient(typing_context, base, divisors, roots, first, last, divisor, root):
    """Return the least of ``base[i] - (root - roots[i])^2 / (divisor - divisors[i])``, and its i.

    For i from `first` to `last`, or to ``first + LANES - 1`` if that is before; the first of equals.
    Arrays are contiguous float64. The divisors must not be 0.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *_, first, last, divisor, root = arguments
        bases, divisors, roots = (
            _load(builder, context.make_array(kind)(context, builder, value).data, first)
            for kind, value in zip(signature.args[:3], arguments[:3], strict=True)
        )
        divisor, root = _spread(builder, divisor, _REALS), _spread(builder, root, _REALS)
        differences = _differences(builder, bases, divisors, roots, divisor, root)
        left = _spread(builder, builder.sub(last, first), _INTEGERS)
        counts = builder.icmp_signed("<=", ir.Constant(_INTEGERS, list(range(LANES))), left)
        infinity = ir.Constant(_REALS, [float("inf")] * LANES)
        found = builder.select(counts, differences, infinity)
        least = _least(builder, found)
        equal = builder.fcmp_ordered("==", found, _spread(builder, least, _REALS))
        word = builder.zext(builder.bitcast(equal, ir.IntType(LANES)), _INTEGER)
        word = builder.or_(word, ir.Constant(_INTEGER, 1 << (LANES - 1)))  # NaN equals nothing
        lane = builder.cttz(word, ir.Constant(ir.IntType(1), 1))
        return context.make_tuple(builder, signature.return_type, (least, builder.add(first, lane)))

    pair = types.Tuple((types.float64, types.int64))
    return pair(base, divisors, roots, first, last, divisor, root), generate


@intrinsic
def least_quotients(typing_context, base, divisors, roots, first, last, at, least, places):
    """Find what `least_quotient` does for `LANES` divisors and roots in a row, from index `at` on.

    They go into ``least[at:at + LANES]``, and each i into ``places[at:at + LANES]``, int64. `last` may be
    any number of lanes from `first`. What a divisor that is not above all others gives means nothing.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointers = [
            context.make_array(kind)(context, builder, value).data
            for kind, value in zip(signature.args, arguments, strict=True)
            if isinstance(kind, types.Array)
        ]
        base, divisors, roots, *targets = pointers
        first, last, at = arguments[3:6]
        divisor, root = _load(builder, divisors, at), _load(builder, roots, at)
        infinity = ir.Constant(_REALS, [float("inf")] * LANES)
        lowest = cgutils.alloca_once_value(builder, infinity)
        place = cgutils.alloca_once_value(builder, ir.Constant(_INTEGERS, [0] * LANES))
        one = ir.Constant(_INTEGER, 1)
        count = builder.add(builder.sub(last, first), one)
        with cgutils.for_range(builder, count, intp=_INTEGER) as loop:
            i = builder.add(first, loop.index)
            number, divided, rooted = (
                _spread(builder, builder.load(builder.gep(pointer, [i])), _REALS)
                for pointer in (base, divisors, roots)
            )
            found = _differences(builder, number, divided, rooted, divisor, root)
            so_far = builder.load(lowest)
            less = builder.fcmp_ordered("<", found, so_far)
            builder.store(builder.select(less, found, so_far), lowest)
            here = _spread(builder, i, _INTEGERS)
            builder.store(builder.select(less, here, builder.load(place)), place)
        for target, result in zip(targets, (lowest, place), strict=True):
            value = builder.load(result)
            address = builder.gep(target, [at])
            builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=8)
        return context.get_dummy_value()

    signature = types.void(base, divisors, roots, first, last, at, least, places)
    return signature, generate


def _differences(
    builder: Any, bases: Any, divisors: Any, roots: Any, divisor: Any, root: Any
) -> Any:
    """Compute ``base - (root - roots)^2 / (divisor - divisors)`` in every lane."""
    distance = builder.fsub(root, roots)
    square = builder.fmul(distance, distance)
    return builder.fsub(bases, builder.fdiv(square, builder.fsub(divisor, divisors)))


def _load(builder: Any, pointer: Any, first: Any) -> Any:
    """Load a vector from an element that need not be aligned."""
    address = builder.bitcast(builder.gep(pointer, [first]), _REALS.as_pointer())
    return builder.load(address, align=8)


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    """Put a number into every lane."""
    nothing = ir.Constant(vector, ir.Undefined)
    lanes = builder.insert_element(nothing, value, ir.Constant(_POSITION, 0))
    zeros = ir.Constant(ir.VectorType(_POSITION, LANES), [0] * LANES)
    return builder.shuffle_vector(lanes, nothing, zeros)


def _least(builder: Any, vector: Any) -> Any:
    """Least number of a vector: the upper half against the lower one, and again."""
    nothing = ir.Constant(_REALS, ir.Undefined)
    half = LANES // 2
    while half:
        upper = [(lane + half) % LANES for lane in range(LANES)]
        positions = ir.Constant(ir.VectorType(_POSITION, LANES), upper)
        other = builder.shuffle_vector(vector, nothing, positions)
        vector = builder.select(builder.fcmp_ordered("<", other, vector), other, vector)
        half //= 2
    return builder.extract_element(vector, ir.Constant(_POSITION, 0))
