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
"""Numbers of a vector."""

_REAL, _INTEGER, _POSITION = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_REALS, _INTEGERS = ir.VectorType(_REAL, LANES), ir.VectorType(_INTEGER, LANES)
_ONE = ir.Constant(_INTEGER, 1)


@intrinsic
def least_quotient(typing_context, base, divisors, roots, first, last, divisor, root):
    """Return where ``base[i] - (root - roots[i])^2 / (divisor - divisors[i])`` is least.

    For i from `first` to `last`, which is not before it; the first of equals. Arrays are contiguous
    float64, and hold two vectors more beyond `last`. The divisor is above those up to there.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = _unwrapped(context, builder, signature, arguments)
        pointers, (first, last) = values[:3], values[3:5]
        end, divisor, root = (spread(builder, value, LANES) for value in values[4:])
        lanes = ir.Constant(_INTEGERS, list(range(LANES)))
        searches = _Search(builder), _Search(builder)
        step = ir.Constant(_INTEGER, LANES * len(searches))
        after = builder.add(last, _ONE)
        with cgutils.for_range_slice(builder, first, after, step, _INTEGER, inc=True) as (i, _):
            for search in searches:
                numbers = [_load(builder, pointer, i) for pointer in pointers]
                places = builder.add(spread(builder, i, LANES), lanes)
                search.offer(numbers, divisor, root, places, builder.icmp_signed("<=", places, end))
                i = builder.add(i, ir.Constant(_INTEGER, LANES))
        searches[0].join(searches[1])
        return searches[0].first_of_least()

    return types.int64(base, divisors, roots, first, last, divisor, root), generate


@intrinsic
def least_quotients(
    typing_context, base, divisors, roots, first, last, at, stride, more, least, places
):
    """Find what `least_quotient` does for `LANES` divisors and roots, `stride` apart from `at` on.

    The least, with `more` added, go into ``least[at::stride]``, and each i into ``places[at::stride]``,
    int64. What a divisor that is not above all others gives means nothing.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values = _unwrapped(context, builder, signature, arguments)
        pointers, (first, last, at, stride, more), targets = values[:3], values[3:8], values[8:]
        points = [at]
        while len(points) < LANES:
            points.append(builder.add(points[-1], stride))
        divisor, root = (_gather(builder, pointer, points) for pointer in pointers[1:])
        searches = _Search(builder), _Search(builder)
        # each takes half of the range; one in the middle is tried by both
        width = builder.sub(last, first)
        half = builder.lshr(builder.add(width, ir.Constant(_INTEGER, 2)), _ONE)
        ahead = builder.add(builder.sub(width, half), _ONE)
        with cgutils.for_range(builder, half, intp=_INTEGER) as loop:
            i = builder.add(first, loop.index)
            for search in searches:
                numbers = [
                    spread(builder, builder.load(builder.gep(pointer, [i])), LANES)
                    for pointer in pointers
                ]
                search.offer(numbers, divisor, root, spread(builder, i, LANES))
                i = builder.add(i, ahead)
        searches[0].join(searches[1])
        lowest, places = searches[0].found()
        _scatter(builder, builder.fadd(lowest, spread(builder, more, LANES)), targets[0], points)
        _scatter(builder, places, targets[1], points)
        return context.get_dummy_value()

    signature = types.void(base, divisors, roots, first, last, at, stride, more, least, places)
    return signature, generate


class _Search:
    """The least ``base - square / divisor`` so far, and its place, in every lane.

    As a fraction: two products compare it in less time than a division takes. Each comparison waits for
    the one before it, so that two searches of half a range are faster than one of all.
    """

    def __init__(self, builder: Any) -> None:
        starts = [
            ir.Constant(vector, [start] * LANES)
            for vector, start in ((_REALS, float("inf")), (_REALS, 1.0), (_INTEGERS, 0))
        ]
        self._builder = builder
        self._variables = [cgutils.alloca_once_value(builder, start) for start in starts]

    def offer(self, numbers: Any, divisor: Any, root: Any, places: Any, counts: Any = None) -> None:
        """Try ``base - (root - roots)^2 / (divisor - divisors)``, in the lanes that count."""
        builder = self._builder
        bases, divisors, roots = numbers
        distance = builder.fsub(root, roots)
        below = builder.fsub(divisor, divisors)
        above = builder.fsub(builder.fmul(bases, below), builder.fmul(distance, distance))
        self._take([above, below, places], counts)

    def join(self, other: _Search) -> None:
        """Go on with the lesser of both in every lane; of equals, this one's."""
        self._take(other._values())

    def found(self) -> tuple[Any, Any]:
        """Return the least of every lane, and their places."""
        above, below, places = self._values()
        return self._builder.fdiv(above, below), places

    def first_of_least(self) -> Any:
        """Place of the least of all lanes: the upper half against the lower one, and again."""
        builder = self._builder
        found = self.found()
        half = LANES // 2
        while half:
            lowest, places = (_part(builder, vector, 0, half) for vector in found)
            others, their_places = (_part(builder, vector, half, half) for vector in found)
            before = builder.icmp_signed("<", their_places, places)
            equal = builder.and_(builder.fcmp_ordered("==", others, lowest), before)
            less = builder.or_(builder.fcmp_ordered("<", others, lowest), equal)
            found = (
                builder.select(less, others, lowest),
                builder.select(less, their_places, places),
            )
            half //= 2
        return builder.extract_element(found[1], ir.Constant(_POSITION, 0))

    def _take(self, values: list, counts: Any = None) -> None:
        builder, known = self._builder, self._values()
        products = builder.fmul(values[0], known[1]), builder.fmul(known[0], values[1])
        less = builder.fcmp_ordered("<", *products)
        if counts is not None:
            less = builder.and_(less, counts)
        for variable, value, so_far in zip(self._variables, values, known, strict=True):
            builder.store(builder.select(less, value, so_far), variable)

    def _values(self) -> list:
        return [self._builder.load(variable) for variable in self._variables]


def _unwrapped(context: Any, builder: Any, signature: Any, arguments: Any) -> list:
    """Arguments, arrays among them as pointers to their elements."""
    return [
        context.make_array(kind)(context, builder, value).data
        if isinstance(kind, types.Array)
        else value
        for kind, value in zip(signature.args, arguments, strict=True)
    ]


def _load(builder: Any, pointer: Any, first: Any) -> Any:
    """Load a vector from an element that need not be aligned."""
    address = builder.bitcast(builder.gep(pointer, [first]), _REALS.as_pointer())
    return builder.load(address, align=8)


def _gather(builder: Any, pointer: Any, places: list) -> Any:
    """Load elements into lanes. If they are neighbours, LLVM makes one load of it."""
    vector = ir.Constant(_REALS, ir.Undefined)
    for lane, place in enumerate(places):
        element = builder.load(builder.gep(pointer, [place]))
        vector = builder.insert_element(vector, element, ir.Constant(_POSITION, lane))
    return vector


def _scatter(builder: Any, vector: Any, pointer: Any, places: list) -> None:
    """Store what `_gather` loads."""
    for lane, place in enumerate(places):
        element = builder.extract_element(vector, ir.Constant(_POSITION, lane))
        builder.store(element, builder.gep(pointer, [place]))


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """Put a number into every lane of a vector."""
    nothing = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    vector = builder.insert_element(nothing, value, ir.Constant(_POSITION, 0))
    zeros = ir.Constant(ir.VectorType(_POSITION, lanes), [0] * lanes)
    return builder.shuffle_vector(vector, nothing, zeros)


def _part(builder: Any, vector: Any, first: int, count: int) -> Any:
    """Some neighbouring lanes of a vector."""
    lanes = list(range(first, first + count))
    positions = ir.Constant(ir.VectorType(_POSITION, count), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), positions)
