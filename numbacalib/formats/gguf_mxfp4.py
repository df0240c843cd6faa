"""GGML's blocks of MXFP4: a scale and the codes of 32 weights, in 17 bytes.

The lower four bits of the bytes hold the first sixteen codes, the upper ones the others; the scale is an
exponent of two plus 127. https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (``block_mxfp4``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.formats.fp4 import Fp4Finder, fp4_grid, fp4_weight, require_fp4, scale_codes
from numbacalib.methods import QuantizedWeight

MXFP4 = "MXFP4"
"""Name of the type, and of the mix that gives it to layers of blocks."""
MXFP4_GRID = fp4_grid(Fp4Finder("mxfp4"))
_KIND = "mxfp4"
_HALF = 16


def pack_mxfp4(quantized: QuantizedWeight) -> NDArray[np.uint8]:
    """Encode a weight [M, K] as rows of blocks, uint8 [M, K / 32 * 17].

    Raises
    ------
    ValueError
        If it is not on the grid of MXFP4.
    """
    require_fp4(quantized)
    scales = scale_codes(quantized, _KIND)
    rows, groups = scales.shape
    codes = quantized.codes.reshape(rows, groups, 2, _HALF)
    packed = codes[:, :, 0] | (codes[:, :, 1] << 4)
    return np.concatenate([scales[:, :, None], packed], axis=2).reshape(rows, -1)


def unpack_mxfp4(rows: NDArray[np.uint8]) -> QuantizedWeight:
    """Undo `pack_mxfp4`.

    Raises
    ------
    ValueError
        If a scale is not a number.
    """
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, 1 + _HALF)
    packed = blocks[:, :, 1:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(len(rows), -1)
    return fp4_weight(codes, blocks[:, :, 0], _KIND, None)
