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
