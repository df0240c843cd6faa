"""Packing of a product's operands into panels, by vectors: see `numbacalib.runtime.tile_product`.

LLVM does not vectorize loops over arrays of one type, since it cannot see that they do not overlap.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

from numbacalib.runtime.half import BFLOAT16_BITS, widen
from numbacalib.runtime.jit import scalar

EDGE = 4
"""Rows and columns that are transposed at once: every panel's width is a multiple."""


@scalar
def pack(memory, at, steps, count, lanes, panels):
    """Pack `count` rows of a matrix as panels [n, depth, lanes], with zeros after the last row.

    `memory` is flat, of a carrier's type; its rows and their elements are `steps` apart, from the element
    `at` on. `lanes` is a constant.
    """
    step, depth_step = steps
    depth, whole, done = panels.shape[1], count // lanes, 0
    if step == 1:
        done = depth
        for d in range(depth):
            for p in range(whole):
                _copy(memory, at + d * depth_step + p * lanes, panels, (p, d), lanes)
    elif depth_step == 1:
        done = depth - depth % EDGE
        for p in range(whole):
            for r in range(0, lanes, EDGE):
                begin = at + (p * lanes + r) * step
                for d in range(0, done, EDGE):
                    _transpose(memory, begin + d, panels, (p, d, r), step)
    for p in range(len(panels)):
        first = done
        if p == whole:
            panels[p], first = 0, 0
        for r in range(min(lanes, count - p * lanes)):
            given = memory[at + (p * lanes + r) * step :]
            for d in range(first, depth):
                panels[p, d, r] = widen(given[d * depth_step])


@intrinsic(prefer_literal=True)
def _copy(typing_context, memory, at, panels, place, lanes):
    """Widen `lanes` elements, a constant number, to a row of a panel, at (panel, row)."""
    count = lanes.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = _Memory(context, builder, signature.args[0], arguments[0])
        target = _Panels(context, builder, signature.args[2], arguments[2:4])
        target.store(0, source.load(arguments[1], count, target.real))
        return context.get_dummy_value()

    return types.void(memory, at, panels, place, lanes), generate


@intrinsic
def _transpose(typing_context, memory, at, panels, place, step):
    """Widen `EDGE` rows of `EDGE` elements, `step` apart, to columns from (panel, row, column) on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source = _Memory(context, builder, signature.args[0], arguments[0])
        target = _Panels(context, builder, signature.args[2], arguments[2:4])
        rows, at = [], arguments[1]
        for _ in range(EDGE):
            rows.append(source.load(at, EDGE, target.real))
            at = builder.add(at, arguments[4])
        for i, column in enumerate(_transposed(builder, rows)):
            target.store(i, column)
        return context.get_dummy_value()

    return types.void(memory, at, panels, place, step), generate


class _Memory:
    """Flat memory of a carrier's type."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self._builder, self._kind = builder, kind.dtype
        self._data = context.make_array(kind)(context, builder, value).data

    def load(self, at: Any, count: int, real: Any) -> Any:
        """Load neighbors as a vector of `real`; see `numbacalib.runtime.half.widen`."""
        builder, kind = self._builder, self._kind
        element = ir.HalfType() if kind == types.uint16 else self._data.type.pointee
        address = builder.gep(self._data, [at])
        address = builder.bitcast(address, ir.VectorType(element, count).as_pointer())
        vector = builder.load(address, align=kind.bitwidth // 8)
        if kind == types.int16:  # bfloat16
            word, single = (ir.VectorType(t, count) for t in (ir.IntType(32), ir.FloatType()))
            shift = ir.Constant(word, [int(BFLOAT16_BITS)] * count)
            vector = builder.bitcast(builder.shl(builder.zext(vector, word), shift), single)
        wide = ir.VectorType(real, count)
        return vector if vector.type == wide else builder.fpext(vector, wide)


class _Panels:
    """Rows of a panel, from a place (panel, row and optionally column) on."""

    def __init__(self, context: Any, builder: Any, kind: Any, values: Any) -> None:
        array = context.make_array(kind)(context, builder, values[0])
        self._builder, self._size = builder, kind.dtype.bitwidth // 8
        self.real = array.data.type.pointee
        strides = cgutils.unpack_tuple(builder, array.strides)
        self._step = strides[1]
        self._first = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        for stride, i in zip(strides, cgutils.unpack_tuple(builder, values[1]), strict=False):
            self._first = builder.gep(self._first, [builder.mul(stride, i)])

    def store(self, row: int, vector: Any) -> None:
        """Store a vector `row` rows on."""
        builder = self._builder
        offset = builder.mul(self._step, ir.Constant(self._step.type, row))
        address = builder.bitcast(builder.gep(self._first, [offset]), vector.type.as_pointer())
        builder.store(vector, address, align=self._size)


def _transposed(builder: Any, vectors: list) -> list:
    """Transpose a square: swap elements off the diagonal, then blocks of 2 by 2, and so on."""
    count, block = len(vectors), 1
    while block < count:
        for i in (i for i in range(count) if not i & block):
            pair = vectors[i], vectors[i + block]
            lower = [n if not n & block else count + n - block for n in range(count)]
            upper = [n + block if not n & block else count + n for n in range(count)]
            vectors[i], vectors[i + block] = (
                builder.shuffle_vector(
                    *pair, ir.Constant(ir.VectorType(ir.IntType(32), count), mask)
                )
                for mask in (lower, upper)
            )
        block *= 2
    return vectors
