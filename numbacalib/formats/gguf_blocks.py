"""GGML's blocks, bit for bit: codes and scales to bytes and back.

A block is a run of parts. Codes are split by bits into planes: a byte has the bits of several codes
that are `lanes` apart. Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h; order
within a block: ``dequantize_row_*`` of ``src/ggml-quants.c`` there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.spec.block_grid import BlockGrid, BlockScales

Bytes = NDArray[Any]


class BlockWeight(NamedTuple):
    """A weight [M, K] in the parts that blocks store."""

    codes: NDArray[np.uint8]
    """[M, K], unsigned."""
    stored: BlockScales

    def rows(self, which: Any) -> BlockWeight:
        """Return some rows, by a slice or an array of row numbers."""
        return BlockWeight(self.codes[which], BlockScales(*(each[which] for each in self.stored)))

    def dequantize(self, grid: BlockGrid) -> NDArray[np.float32]:
        """Return the weights that readers compute, [M, K]."""
        scales, minima = (
            np.repeat(each, grid.group_size, 1) for each in self.stored.products(grid)
        )
        if grid.minima:
            return scales * self.codes - minima
        return scales * (self.codes.astype(np.float32) - grid.half)


class _Plane(NamedTuple):
    """`bits` of each code from bit `first` on: code ``(run * shifts + s) * lanes + lane`` in byte
    ``run * lanes + lane``, shifted left by ``s * bits``.
    """

    first: int
    bits: int
    runs: int
    lanes: int

    def pack(self, codes: Bytes) -> Bytes:
        shifts = 8 // self.bits
        parts = (codes >> self.first) & ((1 << self.bits) - 1)
        parts = parts.reshape(len(codes), self.runs, shifts, self.lanes)
        places = (np.arange(shifts) * self.bits).astype(np.uint8)[:, None]
        return np.bitwise_or.reduce(parts << places, axis=2).reshape(len(codes), -1)

    def unpack(self, stored: Bytes) -> Bytes:
        shifts = 8 // self.bits
        places = (np.arange(shifts) * self.bits).astype(np.uint8)[:, None]
        parts = stored.reshape(len(stored), self.runs, 1, self.lanes) >> places
        return ((parts & ((1 << self.bits) - 1)) << self.first).reshape(len(stored), -1)

    @property
    def size(self) -> int:
        return self.runs * self.lanes


class _Scales(NamedTuple):
    """Packing of the integers of a block's groups, and unpacking to scales and minima."""

    size: int
    pack: Callable[[NDArray[np.int8], Bytes], Bytes]
    unpack: Callable[[Bytes], tuple[NDArray[np.int8], Bytes]]


class BlockType(NamedTuple):
    """One of GGML's types of blocks."""

    grid: BlockGrid
    parts: tuple[Any, ...]
    """Planes, packed integers, or `SCALE` and `MINIMUM`, in the order of the bytes."""

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return sum(2 if isinstance(part, str) else part.size for part in self.parts)


SCALE, MINIMUM = "scale", "minimum"


def _nibbles(scales: NDArray[np.int8], minima: Bytes) -> Bytes:
    return scales.astype(np.uint8) | (minima << 4)


def _from_nibbles(stored: Bytes) -> tuple[NDArray[np.int8], Bytes]:
    return (stored & 15).astype(np.int8), stored >> 4


def _six_bits(scales: NDArray[np.int8], minima: Bytes) -> Bytes:
    """Eight scales and eight minima of 6 bits: four of each whole, below the upper bits of the others."""
    s, m = scales.astype(np.uint8), minima
    whole = (s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6))
    return np.hstack([*whole, (s[:, 4:] & 15) | (m[:, 4:] << 4)])


def _from_six_bits(stored: Bytes) -> tuple[NDArray[np.int8], Bytes]:
    s, m, low = stored[:, :4], stored[:, 4:8], stored[:, 8:]
    scales = np.hstack([s & 63, (low & 15) | (s >> 6 << 4)])
    return scales.astype(np.int8), np.hstack([m & 63, (low >> 4) | (m >> 6 << 4)])


def _signed_six_bits(scales: NDArray[np.int8], minima: Bytes) -> Bytes:
    """Sixteen scales of 6 bits, plus 32: the lower 4 bits in eight bytes, the upper 2 in four."""
    del minima
    s = (scales + 32).astype(np.uint8)
    upper = (s >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.hstack([(s[:, :8] & 15) | (s[:, 8:] << 4), np.bitwise_or.reduce(upper, axis=1)])


def _from_signed_six_bits(stored: Bytes) -> tuple[NDArray[np.int8], Bytes]:
    low = np.hstack([stored[:, :8] & 15, stored[:, :8] >> 4])
    upper = stored[:, 8:].reshape(-1, 1, 4) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    scales = (low | (upper.reshape(-1, 16) << 4)).astype(np.int8) - np.int8(32)
    return scales, np.ones_like(low)


def _eight_bits(scales: NDArray[np.int8], minima: Bytes) -> Bytes:
    del minima
    return scales.view(np.uint8)


def _from_eight_bits(stored: Bytes) -> tuple[NDArray[np.int8], Bytes]:
    return stored.view(np.int8), np.ones_like(stored)


_NIBBLES = _Scales(16, _nibbles, _from_nibbles)
_SIX_BITS = _Scales(12, _six_bits, _from_six_bits)
_SIGNED_SIX_BITS = _Scales(12, _signed_six_bits, _from_signed_six_bits)
_EIGHT_BITS = _Scales(16, _eight_bits, _from_eight_bits)
_FOUR, _FIFTH = _Plane(0, 4, 1, 16), _Plane(4, 1, 4, 1)
_TWO, _FOURS, _TOP = _Plane(0, 2, 2, 32), _Plane(0, 4, 4, 32), _Plane(4, 1, 1, 32)

BLOCK_TYPES = {
    "Q4_0": BlockType(BlockGrid(4, 32, 1, 0, False), (SCALE, _FOUR)),
    "Q4_1": BlockType(BlockGrid(4, 32, 1, 0, True), (SCALE, MINIMUM, _FOUR)),
    "Q5_0": BlockType(BlockGrid(5, 32, 1, 0, False), (SCALE, _FIFTH, _FOUR)),
    "Q5_1": BlockType(BlockGrid(5, 32, 1, 0, True), (SCALE, MINIMUM, _FIFTH, _FOUR)),
    "Q8_0": BlockType(BlockGrid(8, 32, 1, 0, False), (SCALE, _Plane(0, 8, 1, 32))),
    "Q2_K": BlockType(BlockGrid(2, 16, 16, 4, True), (_NIBBLES, _TWO, SCALE, MINIMUM)),
    "Q3_K": BlockType(
        BlockGrid(3, 16, 16, 6, False), (_Plane(2, 1, 1, 32), _TWO, _SIGNED_SIX_BITS, SCALE)
    ),
    "Q4_K": BlockType(BlockGrid(4, 32, 8, 6, True), (SCALE, MINIMUM, _SIX_BITS, _FOURS)),
    "Q5_K": BlockType(BlockGrid(5, 32, 8, 6, True), (SCALE, MINIMUM, _SIX_BITS, _TOP, _FOURS)),
    "Q6_K": BlockType(
        BlockGrid(6, 16, 16, 8, False),
        (_Plane(0, 4, 2, 64), _Plane(4, 2, 2, 32), _EIGHT_BITS, SCALE),
    ),
}
"""Block types to which weights can be quantized, by GGML's names."""


def pack_blocks(weight: BlockWeight, name: str) -> Bytes:
    """Encode a weight [M, K] as rows of blocks of a type, uint8 [M, bytes]."""
    kind = BLOCK_TYPES[name]
    grid, stored = kind.grid, weight.stored
    codes = weight.codes.reshape(-1, grid.values)
    if name == "Q8_0":  # bytes of two's complement
        codes = codes ^ np.uint8(128)
    minima = stored.block_minima
    numbers = {SCALE: stored.block_scales, MINIMUM: minima if grid.scale_bits else -minima}
    columns = []
    for part in kind.parts:
        if isinstance(part, _Plane):
            columns.append(part.pack(codes))
        elif isinstance(part, _Scales):
            integers = (each.reshape(-1, grid.groups) for each in stored[2:])
            columns.append(part.pack(*integers))
        else:
            number = np.ascontiguousarray(numbers[part], "<f2").reshape(-1, 1)
            columns.append(number.view(np.uint8))
    return np.hstack(columns).reshape(len(weight.codes), -1)


def unpack_blocks(rows: Bytes, name: str) -> BlockWeight:
    """Decode rows of blocks of a type, uint8 [M, bytes]."""
    kind = BLOCK_TYPES[name]
    grid, count = kind.grid, len(rows)
    blocks = np.ascontiguousarray(rows).reshape(-1, kind.size)
    codes = np.zeros((len(blocks), grid.values), np.uint8)
    found: dict[str, Any] = {MINIMUM: np.zeros(len(blocks), np.float16)}
    integers = np.ones((2, len(blocks), grid.groups), np.uint8)
    scales, minima = integers[0].view(np.int8), integers[1]
    begin = 0
    for part in kind.parts:
        size = 2 if isinstance(part, str) else part.size
        stored = np.ascontiguousarray(blocks[:, begin : begin + size])
        if isinstance(part, _Plane):
            codes |= part.unpack(stored)
        elif isinstance(part, _Scales):
            scales, minima = part.unpack(stored)
        else:
            found[part] = stored.view("<f2")
        begin += size
    if name == "Q8_0":
        codes ^= np.uint8(128)
    block_minima = found[MINIMUM] if grid.scale_bits else -found[MINIMUM]
    arrays = found[SCALE], block_minima, scales, minima
    return BlockWeight(
        codes.reshape(count, -1), BlockScales(*(array.reshape(count, -1) for array in arrays))
    )
