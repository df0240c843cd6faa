"""Product of packed operands whose result stays in registers.

BLAS first packs both operands of a product, a cost that a product of few columns hardly repays. If they
stay packed, only the microkernel remains (Goto and van de Geijn 2008,
https://doi.org/10.1145/1356052.1356053). The terms are those of BLIS (Van Zee and van de Geijn 2015,
https://doi.org/10.1145/2764454): the left operand is packed as row panels ``[panels, depth, LANES]``, the
right one as column panels ``[panels, depth, COLUMNS]``, and one panel of each gives a microtile
``[COLUMNS, LANES]`` of the result.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.extending import intrinsic

from numbacalib.runtime.half import widen_block
from numbacalib.runtime.jit import scalar
from numbacalib.runtime.lanes import broadcast, multiply_add

_FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
_WIDE = "+avx512f" in _FEATURES
"""True if there are 32 registers of 64 bytes, else 16 of 32 or 32 of 16."""
LANES = 32 if _WIDE else 24
"""Rows of a packed row panel, and of a microtile."""
COLUMNS = 12 if _WIDE else 4
"""Columns of a packed column panel, and of a microtile, whose float32 take three quarters of the registers.
8 would divide groups, as 4 does, but 48 rows of 8 columns were slower with wide registers.
"""
_BYTES = 4 * LANES
"""Bytes of the lanes that are summed at once: all lanes of float32, half of float64."""
_VECTOR = 64 if _WIDE else 32
"""Bytes of a vector, which LLVM splits if registers are smaller."""
DEPTH = 128
"""Columns of a row panel multiplied with all column panels before the next: the L1 cache holds them."""
CACHE_LINE = 64
"""Bytes that are loaded at once."""


@scalar
def add_product(left, right, top, target):
    """Add ``left^T right`` to `target`, of the rows of `right` from `top` on.

    `left` has packed row panels [m, depth, LANES], `right` packed column panels
    [n, >= top + depth, COLUMNS], and `target` is [>= m, >= n * COLUMNS, LANES]. A slice of a row panel
    stays in the L1 cache while it is multiplied with all column panels, and the next slice is prefetched
    meanwhile.
    """
    row_panels, depth = left.shape[:2]
    share = -(-DEPTH // max(len(right), 1))
    for begin in range(0, depth, DEPTH):
        count = min(DEPTH, depth - begin)
        for i in range(row_panels):
            last = i + 1 == row_panels
            following, first = (left[0], begin + count) if last else (left[i + 1], begin)
            for j in range(len(right)):
                prefetch(following, (first + j * share, 0), share)
                at = j * COLUMNS, 0
                add_microtile(left[i], (begin, 0), right[j], (top + begin, 0), count, target[i], at)


@scalar
def pack_rows(source, top, count, left, rows, row_panel):
    """Pack `count` rows of a carrier matrix, from row `top` and column `left` on, into a row panel.

    `row_panel` is [w, LANES]. The rows go through `rows` [LANES, w]: rows a power of two apart would evict
    each other from the cache. All of `rows` is transposed, since vectors need a constant number of lanes;
    its rows from `count` on go to lanes that are never read.
    """
    widen_block(source, top, left, rows[:count])
    for j in range(rows.shape[1]):
        column = row_panel[j]
        for r in range(LANES):
            column[r] = rows[r, j]


@intrinsic
def add_microtile(typing_context, left, left_at, right, right_at, depth, target, target_at):
    """Add the product of a row panel [depth, LANES] and a column panel [depth, COLUMNS] to a microtile.

    Each starts at a row and a column of a matrix; the matrices have one float type and contiguous rows.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        matrices = [
            _Matrix(context, builder, kinds[i], arguments[i], arguments[i + 1]) for i in (0, 2, 5)
        ]
        microtile = _Microtile(builder, *matrices)
        for first in range(0, LANES, microtile.lanes):
            microtile.add(arguments[4], first)
        return context.get_dummy_value()

    signature = types.void(left, left_at, right, right_at, depth, target, target_at)
    return signature, generate


@intrinsic
def prefetch(typing_context, matrix, at, count):
    """Prefetch `count` rows of a matrix of `LANES` columns; rows past its end are no error."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows = _Matrix(context, builder, signature.args[0], *arguments[:2])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        hints = [ir.Constant(number, hint) for hint in (0, 2, 1)]  # read data, second level
        with cgutils.for_range(builder, arguments[2]) as loop:
            for lane in range(0, LANES, CACHE_LINE // rows.size):
                address = builder.bitcast(rows.address(loop.index, lane), byte)
                builder.call(instruction, [address, *hints])
        return context.get_dummy_value()

    return types.void(matrix, at, count), generate


class _Matrix:
    """Addresses of a matrix's elements, counted from a place (row, column)."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any, at: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._step = cgutils.unpack_tuple(builder, array.strides)[0]
        row, column = cgutils.unpack_tuple(builder, at)
        self.element = array.data.type
        self.size = context.get_abi_sizeof(self.element.pointee)
        self._first = array.data
        self._first = builder.gep(self.address(row), [column])

    def address(self, row: Any, column: int = 0) -> Any:
        builder = self._builder
        data = builder.bitcast(self._first, ir.IntType(8).as_pointer())
        start = builder.bitcast(builder.gep(data, [builder.mul(row, self._step)]), self.element)
        return builder.gep(start, [_number(column)])


class _Microtile:
    """Code of the sums of one microtile."""

    def __init__(self, builder: Any, left: _Matrix, right: _Matrix, target: _Matrix) -> None:
        self._builder, self._size = builder, left.size
        self._left, self._right, self._target = left, right, target
        self._width = _VECTOR // left.size
        self._vector = ir.VectorType(left.element.pointee, self._width)
        self.lanes = _BYTES // left.size
        """Lanes whose sums fit registers."""

    def add(self, depth: Any, first: int) -> None:
        """Add the product's lanes from `first` on."""
        builder = self._builder
        offsets = range(first, first + self.lanes, self._width)
        zero = ir.Constant(self._vector, [0.0] * self._width)
        sums = {
            (column, offset): cgutils.alloca_once_value(builder, zero)
            for column in range(COLUMNS)
            for offset in offsets
        }
        with cgutils.for_range(builder, depth) as loop:
            vectors = {offset: self._load(self._left, loop.index, offset) for offset in offsets}
            for column in range(COLUMNS):
                factor = builder.load(self._right.address(loop.index, column))
                factor = broadcast(builder, factor, self._width)
                for offset, vector in vectors.items():
                    variable = sums[column, offset]
                    total = multiply_add(builder, vector, factor, builder.load(variable))
                    builder.store(total, variable)
        for (column, offset), variable in sums.items():
            given = self._load(self._target, _number(column), offset)
            total = builder.fadd(given, builder.load(variable))
            address = self._address(self._target, _number(column), offset)
            builder.store(total, address, align=self._size)

    def _address(self, matrix: _Matrix, row: Any, column: int) -> Any:
        return self._builder.bitcast(matrix.address(row, column), self._vector.as_pointer())

    def _load(self, matrix: _Matrix, row: Any, column: int) -> Any:
        return self._builder.load(self._address(matrix, row, column), align=self._size)


def _number(value: int) -> Any:
    return ir.Constant(ir.IntType(64), value)
