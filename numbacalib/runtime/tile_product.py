"""A product whose result stays in registers, of operands that lie as they are read.

BLAS copies both operands of a product into this order first. Where they are kept in it, which saves a
fifth of the time of products as narrow as a panel, only the loop in the middle is left (the
microkernel of Goto and van de Geijn 2008, https://doi.org/10.1145/1356052.1356053).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.core.extending import intrinsic

from numbacalib.runtime.jit import scalar
from numbacalib.runtime.lanes import spread, unwrapped

_FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
_WIDE = "+avx512f" in _FEATURES
"""Whether there are 32 registers of 64 bytes; else it is 16 of 32, or 32 of 16."""
LANES = 32 if _WIDE else 16
"""Rows of a tile."""
COLUMNS = 12 if _WIDE else 6
"""Columns of a tile: its float32 take three quarters of the registers."""
_BYTES = 4 * LANES
"""Bytes of the lanes that are added up at once: all of float32, half of float64."""
_VECTOR = 64
"""Bytes of a vector, which LLVM makes several of where registers are smaller."""
DEPTH = 256
"""Columns of the left operand that are multiplied by all of the right one in turn: both stay in caches."""


@scalar
def add_product(left, depth, right, top, target, tiles):
    """Add ``left^T right`` to `target`, of the first `depth` columns of `left` and rows from `top` on.

    `left` is [tiles, >= depth, LANES], `right` [strips, >= top + depth, COLUMNS] and `target`
    [tiles, >= strips * COLUMNS, LANES], of which the first `tiles` are meant.
    """
    for begin in range(0, depth, DEPTH):
        count = min(DEPTH, depth - begin)
        for strip in range(len(right)):
            for tile in range(tiles):
                _add_tile(
                    left[tile, begin:],
                    right[strip, top + begin :],
                    count,
                    target[tile, strip * COLUMNS :],
                )


@intrinsic
def _add_tile(typing_context, left, right, depth, target):
    """Add the product of [depth, LANES], transposed, and [depth, COLUMNS] to [COLUMNS, LANES].

    Arrays are contiguous, of one float type; they may go on.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        real = context.get_value_type(signature.args[0].dtype)
        size = context.get_abi_sizeof(real)
        tile = _Tile(builder, real, size)
        left, right, depth, target = unwrapped(context, builder, signature, arguments)
        for first in range(0, LANES * size, _BYTES):
            tile.add(left, right, depth, target, first // size)
        return context.get_dummy_value()

    return types.void(left, right, depth, target), generate


class _Tile:
    """Code for the sums of one tile."""

    def __init__(self, builder: Any, real: Any, size: int) -> None:
        self._builder, self._size = builder, size
        self._width = _VECTOR // size
        self._vector = ir.VectorType(real, self._width)
        self._zero = ir.Constant(self._vector, [0.0] * self._width)
        self._multiply_add = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self._vector, [self._vector] * 3),
            f"llvm.fmuladd.v{self._width}f{8 * size}",
        )

    def add(self, left: Any, right: Any, depth: Any, target: Any, first: int) -> None:
        """Add the product's lanes from `first` on, as many as registers hold."""
        builder = self._builder
        offsets = range(first, first + _BYTES // self._size, self._width)
        places = [(column, offset) for column in range(COLUMNS) for offset in offsets]
        sums = {place: cgutils.alloca_once_value(builder, self._zero) for place in places}
        with cgutils.for_range(builder, depth) as loop:
            row = builder.mul(loop.index, self._number(LANES))
            vectors = {offset: self._load(self._address(left, row, offset)) for offset in offsets}
            row = builder.mul(loop.index, self._number(COLUMNS))
            for column in range(COLUMNS):
                place = builder.add(row, self._number(column))
                factor = spread(builder, builder.load(builder.gep(right, [place])), self._width)
                for offset, vector in vectors.items():
                    variable = sums[column, offset]
                    terms = vector, factor, builder.load(variable)
                    builder.store(builder.call(self._multiply_add, terms), variable)
        for (column, offset), variable in sums.items():
            address = self._address(target, self._number(column * LANES), offset)
            total = builder.fadd(self._load(address), builder.load(variable))
            builder.store(total, address, align=self._size)

    def _address(self, pointer: Any, row: Any, offset: int) -> Any:
        """Address of a vector in a row."""
        builder = self._builder
        address = builder.gep(pointer, [builder.add(row, self._number(offset))])
        return builder.bitcast(address, self._vector.as_pointer())

    def _load(self, address: Any) -> Any:
        return self._builder.load(address, align=self._size)

    @staticmethod
    def _number(value: int) -> Any:
        return ir.Constant(ir.IntType(64), value)
