"""Blocked DequantizeLinear, ONNX's own operator for quantized weights, in NumPy arrays.

For a weight [M, K] in G blocks per row, of which the last may be shorter, or for its transpose, as MatMul
needs it:

- ``x``, codes in integers of 2, 4 or 8 bits: signed ones on the symmetric grid, whose zero is 0;
- ``scale``, with G in place of K, in the weight's own dtype;
- ``zero_point``, of the same shape, in the type of the codes; without it zeros are 0.

https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods import QuantizedWeight
from numbacalib.runtime.extras import extra

OPSETS = {2: 25, 4: 21, 8: 21}
"""First opsets with blocks of such integers, by bits."""


class DequantizedLinear(NamedTuple):
    """Inputs of a DequantizeLinear node, by their ONNX names."""

    x: NDArray[Any]
    scale: NDArray[Any]
    zero_point: NDArray[Any] | None


def _integers(*, signed: bool) -> dict[int, np.dtype]:
    """Types of codes, by their bits."""
    with extra("onnx"):
        import ml_dtypes

    if signed:
        kinds = {2: ml_dtypes.int2, 4: ml_dtypes.int4, 8: np.int8}
    else:
        kinds = {2: ml_dtypes.uint2, 4: ml_dtypes.uint4, 8: np.uint8}
    return {bits: np.dtype(kind) for bits, kind in kinds.items()}


def pack(quantized: QuantizedWeight, channels: int, *, transposed: bool) -> DequantizedLinear:
    """Pack a weight of whole blocks, [M, G * block], of which the first `channels` columns are K.

    Raises
    ------
    ValueError
        If it has groups out of order, or real zeros.
    """
    if quantized.g_idx is not None:
        raise ValueError("g_idx: expected None, DequantizeLinear has groups in order")
    if quantized.zeros.dtype != np.uint8:
        raise ValueError(
            f"zeros: expected integers in DequantizeLinear, got {quantized.zeros.dtype}"
        )
    bits, codes, zeros = quantized.bits, quantized.codes[:, :channels], None
    kind = _integers(signed=quantized.symmetric)[bits]
    if quantized.symmetric:
        codes = (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    else:
        zeros = quantized.zeros.astype(kind)
    found = DequantizedLinear(codes.astype(kind), quantized.scales, zeros)
    return _transposed(found) if transposed else found


def unpack(stored: DequantizedLinear, block: int, *, transposed: bool) -> QuantizedWeight:
    """Undo `pack`; K is padded to whole blocks.

    Raises
    ------
    ValueError
        If a shape or dtype does not fit the others.
    """
    codes, scales, zeros = _transposed(stored) if transposed else stored
    kinds = {
        kind: (bits, signed)
        for signed in (False, True)
        for bits, kind in _integers(signed=signed).items()
    }
    if codes.dtype not in kinds or codes.ndim != 2:
        raise ValueError(f"x: expected a matrix of integers of 2, 4 or 8 bits, got {codes.dtype}")
    bits, symmetric = kinds[codes.dtype]
    rows, channels = codes.shape
    groups = -(-channels // block)
    for name, each in (("scale", scales), ("zero_point", zeros)):
        if each is not None and each.shape != (rows, groups):
            raise ValueError(f"{name}: expected {rows} x {groups}, got {list(each.shape)}")
    if symmetric and zeros is not None and zeros.astype(np.int8).any():
        raise ValueError("zero_point: expected 0 of signed codes, got others")
    half = 1 << (bits - 1) if symmetric else 0
    found = np.full((rows, groups), half, np.uint8)
    if not symmetric and zeros is not None:
        found = zeros.astype(np.uint8)
    filled = np.repeat(found, block, axis=1)  # zeros beyond K
    filled[:, :channels] = codes.astype(np.int8 if symmetric else np.uint8).astype(np.int16) + half
    return QuantizedWeight(
        filled, np.ascontiguousarray(scales), np.ascontiguousarray(found), bits, block, symmetric
    )


def _transposed(stored: DequantizedLinear) -> DequantizedLinear:
    zeros = None if stored.zero_point is None else stored.zero_point.T
    return DequantizedLinear(stored.x.T, stored.scale.T, zeros)


def stored_bytes(shape: tuple[int, int], bits: int, block: int, symmetric: bool, item: int) -> int:
    """Bytes of the arrays of `pack` for a weight [M, K] with scales of `item` bytes each."""
    rows, channels = shape
    groups = -(-channels // block)
    zeros = 0 if symmetric else -(-rows * groups * bits // 8)
    return -(-rows * channels * bits // 8) + rows * groups * item + zeros
