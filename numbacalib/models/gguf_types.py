"""GGML's tensor types: names, storage, and dequantization.

Numbers and sizes: https://github.com/ggml-org/ggml/blob/master/include/ggml.h (``enum ggml_type``) and
``src/ggml-common.h`` there. Blocks are dequantized by the ``gguf`` package, in pieces that fit in the
cache: measured as fast as code of our own (120 to 850 million values a second).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.extras import extra

with extra("models"):
    import ml_dtypes

__all__ = ["TensorType", "read_values", "tensor_type"]

_PIECE = 1 << 18
"""Values to dequantize at a time."""


class TensorType(NamedTuple):
    """A storage type: blocks of `values` values in `size` bytes; `dtype` for plain, unquantized types."""

    name: str
    values: int
    size: int
    dtype: np.dtype[Any] | None


def _plain(name: str, dtype: Any) -> TensorType:
    dtype = np.dtype(dtype)
    return TensorType(name, 1, dtype.itemsize, dtype)


_TYPES = {
    0: _plain("F32", "<f4"),
    1: _plain("F16", "<f2"),
    2: TensorType("Q4_0", 32, 18, None),
    3: TensorType("Q4_1", 32, 20, None),
    6: TensorType("Q5_0", 32, 22, None),
    7: TensorType("Q5_1", 32, 24, None),
    8: TensorType("Q8_0", 32, 34, None),
    9: TensorType("Q8_1", 32, 36, None),
    10: TensorType("Q2_K", 256, 84, None),
    11: TensorType("Q3_K", 256, 110, None),
    12: TensorType("Q4_K", 256, 144, None),
    13: TensorType("Q5_K", 256, 176, None),
    14: TensorType("Q6_K", 256, 210, None),
    15: TensorType("Q8_K", 256, 292, None),
    16: TensorType("IQ2_XXS", 256, 66, None),
    17: TensorType("IQ2_XS", 256, 74, None),
    18: TensorType("IQ3_XXS", 256, 98, None),
    19: TensorType("IQ1_S", 256, 50, None),
    20: TensorType("IQ4_NL", 32, 18, None),
    21: TensorType("IQ3_S", 256, 110, None),
    22: TensorType("IQ2_S", 256, 82, None),
    23: TensorType("IQ4_XS", 256, 136, None),
    24: _plain("I8", "i1"),
    25: _plain("I16", "<i2"),
    26: _plain("I32", "<i4"),
    27: _plain("I64", "<i8"),
    28: _plain("F64", "<f8"),
    29: TensorType("IQ1_M", 256, 56, None),
    30: _plain("BF16", ml_dtypes.bfloat16),
    34: TensorType("TQ1_0", 256, 54, None),
    35: TensorType("TQ2_0", 256, 66, None),
    39: TensorType("MXFP4", 32, 17, None),
    40: TensorType("NVFP4", 64, 36, None),
    41: TensorType("Q1_0", 128, 18, None),
}

_WITHDRAWN = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Types that GGML has removed; their numbers are not reused."""


def tensor_type(number: int) -> TensorType:
    """Look a type up by its number in the file.

    Raises
    ------
    ValueError
        If GGML has no such type, or has removed it.
    """
    if number in _TYPES:
        return _TYPES[number]
    if number in _WITHDRAWN:
        raise ValueError(f"GGML type {_WITHDRAWN[number]} has been withdrawn, and cannot be read")
    raise ValueError(f"expected a GGML tensor type, got number {number}")


def type_named(name: str) -> TensorType:
    """Look a type up by its name."""
    return _TYPES[type_numbers()[name]]


def type_numbers() -> dict[str, int]:
    """Return the numbers of all types by name."""
    return {kind.name: number for number, kind in _TYPES.items()}


def require_readable(kind: TensorType) -> None:
    """Raise a `ValueError` that names the type if the ``gguf`` package cannot dequantize it."""
    if kind.dtype is None:
        _dequantize(np.zeros(kind.size, np.uint8), kind)


def read_values(
    kind: TensorType, count: int, read_into: Callable[[NDArray[np.uint8]], None]
) -> NDArray[Any]:
    """Read values: plain types in their own dtype, the others as float32.

    Parameters
    ----------
    kind : TensorType
    count : int
        Number of values, a multiple of the block's.
    read_into : callable
        Fills an array with the next stored bytes.

    Returns
    -------
    array [count]
    """
    if kind.dtype is not None:
        values = np.empty(count, kind.dtype)
        read_into(values.view(np.uint8))
        return values
    values = np.empty(count, np.float32)
    for start in range(0, count, _PIECE):
        piece = values[start : start + _PIECE]
        stored = np.empty(len(piece) // kind.values * kind.size, np.uint8)
        read_into(stored)
        piece[...] = _dequantize(stored, kind)
    return values


def _dequantize(stored: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    with extra("models"):
        import gguf

    try:
        number = gguf.GGMLQuantizationType[kind.name]
        with np.errstate(all="ignore"):  # scales may be non-finite; callers check values
            return gguf.dequantize(stored[None], number)[0]
    except (KeyError, NotImplementedError):  # the type is newer than the package, or never stored
        raise ValueError(f"tensors of GGML type {kind.name} cannot be dequantized") from None
