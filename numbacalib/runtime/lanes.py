"""Searches for a least quotient by vector instructions, through LLVM's vectors, for any processor.

In a scalar loop each comparison is a branch that depends on the last one, and processors mispredict half of
them. Vectors need no branches.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

LANES = 8
"""Numbers of a vector."""

_REAL, _INTEGER, _POSITION = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_REALS, _INTEGERS = ir.VectorType(_REAL, LANES), ir.VectorType(_INTEGER, LANES)
_ONE = ir.Constant(_INTEGER, 1)


@intrinsic
def least_quotient(typing_context, base, divisors, roots, first, last, divisor, root):
    """Return the i with the least ``base[i] - (root - roots[i])^2 / (divisor - divisors[i])``.

    i runs from `first` to `last`, and `last` is not before `first`. Of several i whose quotients are equal
    up to rounding, any may be returned. Arrays are contiguous float64 and hold two more vectors beyond
    `last`. `divisor` is larger than ``divisors`` up to `last`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = _unwrapped(context, builder, signature, arguments)
        pointers, (first, last) = values[:3], values[3:5]
        end, divisor, root = (broadcast(builder, value, LANES) for value in values[4:])
        lanes = ir.Constant(_INTEGERS, list(range(LANES)))
        search = _Search(builder, divisor, root)
        width = ir.Constant(_INTEGER, LANES)
        step = builder.add(width, width)

        def offer(i: Any, end: Any = None) -> None:
            pair = []
            for begin in (i, builder.add(i, width)):
                numbers = [_load(builder, pointer, begin) for pointer in pointers]
                places = builder.add(broadcast(builder, begin, LANES), lanes)
                pair.append(search.candidate(numbers, places))
            search.offer(pair, end)

        tail = builder.add(first, builder.mul(builder.sdiv(builder.sub(last, first), step), step))
        with cgutils.for_range_slice(builder, first, tail, step, _INTEGER, inc=True) as (i, _):
            offer(i)
        offer(tail, end)
        return search.place_of_least()

    return types.int64(base, divisors, roots, first, last, divisor, root), generate


@intrinsic
def least_quotients(
    typing_context, base, divisors, roots, first, last, at, stride, more, least, places
):
    """Find the least quotients, as `least_quotient` does, for `LANES` divisors and roots at once.

    The divisors and roots are elements ``at``, ``at + stride``, ... of the arrays. The least quotients,
    with `more` added, go into ``least[at::stride]``, and each i into ``places[at::stride]``, int64. The
    result for a divisor that is not larger than all others is undefined.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = _unwrapped(context, builder, signature, arguments)
        pointers, (first, last, at, stride, more), targets = values[:3], values[3:8], values[8:]
        points = [at]
        while len(points) < LANES:
            points.append(builder.add(points[-1], stride))
        divisor, root = (_gather(builder, pointer, points) for pointer in pointers[1:])
        search = _Search(builder, divisor, root)
        # one candidate of each half of the range at a time; the one in the middle may come twice
        width = builder.sub(last, first)
        half = builder.lshr(builder.add(width, ir.Constant(_INTEGER, 2)), _ONE)
        ahead = builder.add(builder.sub(width, half), _ONE)
        with cgutils.for_range(builder, half, intp=_INTEGER) as loop:
            i = builder.add(first, loop.index)
            pair = []
            for place in (i, builder.add(i, ahead)):
                numbers = [
                    broadcast(builder, builder.load(builder.gep(pointer, [place])), LANES)
                    for pointer in pointers
                ]
                pair.append(search.candidate(numbers, broadcast(builder, place, LANES)))
            search.offer(pair)
        lowest, places = search.found()
        _scatter(builder, builder.fadd(lowest, broadcast(builder, more, LANES)), targets[0], points)
        _scatter(builder, places, targets[1], points)
        return context.get_dummy_value()

    signature = types.void(base, divisors, roots, first, last, at, stride, more, least, places)
    return signature, generate


class _Search:
    """The least ``base - square / divisor`` so far, and its place, in every lane.

    It is kept as a fraction: comparing by two products takes less time than a division. Each comparison
    with the least waits for the one before it, so two candidates are first compared with each other.
    """

    def __init__(self, builder: Any, divisor: Any, root: Any) -> None:
        starts = [
            ir.Constant(vector, [start] * LANES)
            for vector, start in ((_REALS, float("inf")), (_REALS, 1.0), (_INTEGERS, 0))
        ]
        self._builder, self._divisor, self._root = builder, divisor, root
        self._variables = [cgutils.alloca_once_value(builder, start) for start in starts]

    def candidate(self, numbers: list, places: Any) -> list:
        """``base - (root - roots)^2 / (divisor - divisors)`` as a fraction, and its place."""
        builder = self._builder
        bases, divisors, roots = numbers
        distance = builder.fsub(self._root, roots)
        below = builder.fsub(self._divisor, divisors)
        square = builder.fmul(distance, distance)
        return [multiply_add(builder, bases, below, builder.fneg(square)), below, places]

    def offer(self, pair: list, end: Any = None) -> None:
        """Try two candidates, in the lanes whose places are not beyond the end."""
        first, second = pair
        lesser = self._lesser(self._least(), self._lesser(first, second, end), end)
        for variable, value in zip(self._variables, lesser, strict=True):
            self._builder.store(value, variable)

    def found(self) -> tuple[Any, Any]:
        """Return the least of every lane, and their places."""
        above, below, places = self._least()
        return self._builder.fdiv(above, below), places

    def place_of_least(self) -> Any:
        """Place of the least of all lanes: halves of the lanes are compared, then halves of these."""
        builder = self._builder
        lowest, places = self.found()
        half = LANES // 2
        while half:
            lower, upper = (_part(builder, lowest, first, half) for first in (0, half))
            less = builder.fcmp_ordered("<", upper, lower)
            lowest = builder.select(less, upper, lower)
            lower, upper = (_part(builder, places, first, half) for first in (0, half))
            places = builder.select(less, upper, lower)
            half //= 2
        return builder.extract_element(places, ir.Constant(_POSITION, 0))

    def _lesser(self, least: list, other: list, end: Any) -> list:
        """The other candidate in the lanes where it is less."""
        builder = self._builder
        product = builder.fneg(builder.fmul(least[0], other[1]))
        difference = multiply_add(builder, other[0], least[1], product)
        # a vector blend reads only the sign bit, so that no float comparison is needed
        zeros = ir.Constant(_INTEGERS, [0] * LANES)
        less = builder.icmp_signed("<", builder.bitcast(difference, _INTEGERS), zeros)
        if end is not None:
            less = builder.and_(less, builder.icmp_signed("<=", other[2], end))
        return [builder.select(less, *pair) for pair in zip(other, least, strict=True)]

    def _least(self) -> list:
        return [self._builder.load(variable) for variable in self._variables]


def _unwrapped(context: Any, builder: Any, signature: Any, arguments: Any) -> list:
    """Arguments, with arrays replaced by pointers to their elements."""
    return [
        context.make_array(kind)(context, builder, value).data
        if isinstance(kind, types.Array)
        else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _load(builder: Any, pointer: Any, first: Any) -> Any:
    """Load a vector that starts at an element, without vector alignment."""
    address = builder.bitcast(builder.gep(pointer, [first]), _REALS.as_pointer())
    return builder.load(address, align=8)


def _gather(builder: Any, pointer: Any, places: list) -> Any:
    """Load elements into lanes. If they are neighbors, LLVM merges the loads into one."""
    vector = ir.Constant(_REALS, ir.Undefined)
    for lane, place in enumerate(places):
        element = builder.load(builder.gep(pointer, [place]))
        vector = builder.insert_element(vector, element, ir.Constant(_POSITION, lane))
    return vector


def _scatter(builder: Any, vector: Any, pointer: Any, places: list) -> None:
    """Store lanes to the places from which `_gather` loads them."""
    for lane, place in enumerate(places):
        element = builder.extract_element(vector, ir.Constant(_POSITION, lane))
        builder.store(element, builder.gep(pointer, [place]))


def multiply_add(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    """``left * right + addend`` of vectors, in one instruction if the processor has it."""
    vector = left.type
    bits = 64 if vector.element == _REAL else 32
    kind = ir.FunctionType(vector, [vector] * 3)
    name = f"llvm.fmuladd.v{vector.count}f{bits}"
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, [left, right, addend])


def broadcast(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector with a number in every lane."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    vector = builder.insert_element(nothing, value, ir.Constant(_POSITION, 0))
    zeros = ir.Constant(ir.VectorType(_POSITION, lanes), [0] * lanes)
    return builder.shuffle_vector(vector, nothing, zeros)


def _part(builder: Any, vector: Any, first: int, count: int) -> Any:
    """The `count` lanes of a vector from `first` on."""
    lanes = list(range(first, first + count))
    positions = ir.Constant(ir.VectorType(_POSITION, count), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), positions)
