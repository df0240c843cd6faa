"""MXFP4 tensors in safetensors files, such as gpt-oss's experts: blocks of codes, and their scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.spec.small_floats import MXFP4, POINTS

_SIGNED = np.array([*POINTS, *(-point for point in POINTS)], np.float32)
_PAIRS = np.stack([np.tile(_SIGNED, 16), np.repeat(_SIGNED, 16)], axis=1)
"""Values of a byte's two codes, the lower four bits first."""
_SCALES = np.append(MXFP4.scales.values, np.float32(np.nan))
"""Powers of two by scale code; the last code is NaN."""


def mxfp4_values(blocks: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float32]:
    """Decode blocks of E2M1 codes and their scales.

    Parameters
    ----------
    blocks : uint8 array [..., G, 16]
        Two codes a byte.
    scales : uint8 array [..., G]
        Exponents of two, plus 127.

    Returns
    -------
    float32 array [..., G * 32]

    Raises
    ------
    ValueError
        If a shape or dtype does not fit.
    """
    width = MXFP4.group_size // 2
    if blocks.dtype != np.uint8 or blocks.shape != (*scales.shape, width):
        raise ValueError(
            f"blocks: expected uint8 {[*scales.shape, width]}, got {blocks.dtype} {list(blocks.shape)}"
        )
    if scales.dtype != np.uint8:
        raise ValueError(f"scales: expected uint8, got {scales.dtype}")
    values = _PAIRS[blocks].reshape(*scales.shape, MXFP4.group_size)
    with np.errstate(over="ignore"):  # overflow gives infinities, which users of the tensor find
        values *= _SCALES[scales][..., None]
    return values.reshape(*scales.shape[:-1], -1)
