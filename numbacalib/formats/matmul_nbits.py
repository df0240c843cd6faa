"""MatMulNBits, ONNX Runtime's product with quantized weights, in NumPy arrays.

For a weight [M, K] in G blocks per row, of which the last may be shorter:

- ``B`` uint8 [M, G, block * bits / 8], unsigned codes, one bit stream per block, least significant first;
- ``scales`` [M, G], in the weight's own dtype;
- ``zero_points`` uint8 [M, ceil(G * bits / 8)], one bit stream per row, or real numbers [M, G] in the dtype
  of the scales, at 2 and 4 bits; without them zeros are ``2 ** (bits - 1)``.

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.bit_packing import pack_bits, unpack_bits, word_count
from numbacalib.formats.format import GridRules
from numbacalib.methods import QuantizedWeight

RULES = GridRules(
    bits=(2, 4, 8),
    group_sizes=(16, 32, 64, 128, 256),
    whole_rows=False,
    scale_dtypes=("float32", "float16"),
)
"""Grids that the operator stores; K may be any number."""


class PackedProduct(NamedTuple):
    """Inputs of a MatMulNBits node after the first, by their ONNX names."""

    B: NDArray[np.uint8]
    scales: NDArray[Any]
    zero_points: NDArray[Any] | None


REAL_BITS = (2, 4)
"""Bits of codes with which zeros may be real; ONNX Runtime 1.32 fails at 8."""


def padded(channels: int, block: int) -> int:
    """Return K padded to whole blocks, on which codes are chosen."""
    return -(-channels // block) * block


def pack(quantized: QuantizedWeight) -> PackedProduct:
    """Pack a weight of whole blocks, [M, G * block].

    Raises
    ------
    ValueError
        If it has groups out of order, or real zeros that cannot be stored.
    """
    if quantized.g_idx is not None:
        raise ValueError("g_idx: expected None, MatMulNBits has groups in order")
    rows, groups = quantized.scales.shape
    bits, block = quantized.bits, quantized.group_size
    words = pack_bits(quantized.codes.reshape(rows * groups, block), bits)
    codes = words.view(np.uint8).reshape(rows, groups, block * bits // 8)
    zeros: NDArray[Any] | None = None
    if quantized.zeros.dtype != np.uint8:
        zeros = _real_zeros(quantized)
    elif not quantized.symmetric:
        zeros = pack_bits(quantized.zeros, bits).view(np.uint8)[:, : -(-groups * bits // 8)]
    return PackedProduct(codes, quantized.scales, zeros)


def _real_zeros(quantized: QuantizedWeight) -> NDArray[Any]:
    """Return real zeros in the dtype of the scales, which must hold them exactly."""
    stored = quantized.zeros.astype(quantized.scales.dtype)
    if quantized.bits not in REAL_BITS or (stored != quantized.zeros).any():
        raise ValueError(
            f"zeros: expected integers, or at 2 and 4 bits numbers in {stored.dtype}, got "
            f"{quantized.zeros.dtype} at {quantized.bits} bits"
        )
    return stored


def unpack(packed: PackedProduct, bits: int, block: int) -> QuantizedWeight:
    """Undo `pack`.

    Raises
    ------
    ValueError
        If a shape or dtype does not fit the others.
    """
    codes = np.asarray(packed.B)
    if codes.dtype != np.uint8 or codes.ndim != 3 or codes.shape[2] != block * bits // 8:
        raise ValueError(
            f"B: expected uint8 [M, G, {block * bits // 8}], got {codes.dtype} {list(codes.shape)}"
        )
    rows, groups, _ = codes.shape
    scales = np.asarray(packed.scales)
    if scales.size != rows * groups:
        raise ValueError(f"scales: expected {rows} x {groups}, got {list(scales.shape)}")
    zeros: NDArray[Any] = np.full((rows, groups), 1 << (bits - 1), np.uint8)
    stored = packed.zero_points
    if stored is not None and stored.dtype == scales.dtype and stored.size == scales.size:
        zeros = stored.reshape(rows, groups).astype(np.float32)
    elif stored is not None:
        width = -(-groups * bits // 8)
        if stored.dtype != np.uint8 or stored.size != rows * width:
            raise ValueError(
                f"zero_points: expected uint8 {rows} x {width}, got {stored.dtype} {list(stored.shape)}"
            )
        words = np.zeros((rows, 4 * word_count(groups, bits)), np.uint8)
        words[:, :width] = stored.reshape(rows, width)
        zeros = unpack_bits(words.view(np.int32), bits, groups)
    words = np.ascontiguousarray(codes).reshape(rows * groups, -1).view(np.int32)
    return QuantizedWeight(
        unpack_bits(words, bits, block).reshape(rows, groups * block),
        scales.reshape(rows, groups),
        zeros,
        bits,
        block,
        packed.zero_points is None,
    )


def packed_bytes(
    shape: tuple[int, int], bits: int, block: int, symmetric: bool, item: int, *, real: bool = False
) -> int:
    """Bytes of the arrays of `pack` for a weight [M, K] with scales, and `real` zeros, of `item` bytes."""
    rows, channels = shape
    groups = -(-channels // block)
    zeros = 0 if symmetric else groups * item if real else -(-groups * bits // 8)
    return rows * (groups * (block * bits // 8 + item) + zeros)
