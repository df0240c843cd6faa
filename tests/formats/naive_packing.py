"""Packing written from its definition: a row's codes are the digits of one long integer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def naive_pack(codes: NDArray, bits: int) -> NDArray[np.int32]:
    """Words of each row: the integer ``sum(codes[j] << (bits * j))``, little-endian."""
    length = (codes.shape[1] * bits + 31) // 32
    rows = []
    for row in codes.tolist():
        number = sum(code << (bits * j) for j, code in enumerate(row))
        rows.append(np.frombuffer(number.to_bytes(4 * length, "little"), "<i4"))
    return np.stack(rows)


def naive_unpack(words: NDArray, bits: int, columns: int) -> NDArray[np.int64]:
    """Codes [R, columns] of rows of words: the digits of the integer that they are."""
    rows = []
    for row in words:
        number = int.from_bytes(np.ascontiguousarray(row).tobytes(), "little")
        rows.append([(number >> (bits * j)) & ((1 << bits) - 1) for j in range(columns)])
    return np.array(rows)
