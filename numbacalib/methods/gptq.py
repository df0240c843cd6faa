"""GPTQ of a layer, from its weight and its Hessian."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.linalg import factor_hessian
from numbacalib.methods.quantized_weight import QuantizedWeight, stored
from numbacalib.methods.settings import checked_settings
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.ops.grid import group_indices
from numbacalib.runtime import checks


class GptqReport(NamedTuple):
    """How a layer went."""

    loss: float
    """``trace(D (H + damping) D^T)`` for ``D = W - Q``, the loss that GPTQ descends."""
    damping: float
    """What was added to the diagonal of the Hessian."""
    dead: int
    """Input channels that no token excited; their weights became 0."""


def gptq(
    weight: NDArray,
    hessian: NDArray,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    percdamp: float = 0.01,
    scale_dtype: DTypeLike = np.float16,
) -> tuple[QuantizedWeight, GptqReport]:
    """Quantize a weight by GPTQ, without inverting the Hessian.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    hessian : array [K, K]
        As `gptq_hessian_update` accumulates it; its scale does not matter.
    bits : int
        2 to 8.
    group_size : int or None, default 128
        Input channels that share a scale; divides K. None is one scale a row.
    symmetric : bool, default False
    percdamp : float, default 0.01
        Damping, as a fraction of the mean of the Hessian's diagonal.
    scale_dtype : dtype, default float16
        What scales are stored in; codes are chosen against the rounded scales.

    Raises
    ------
    ValueError, TypeError
        If a setting does not fit, or a value is not finite (the first index is named).
    numpy.linalg.LinAlgError
        If the damped Hessian is not positive definite.

    Notes
    -----
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022); `quantize_direct` has the form without an inverse.
    """
    grid, size, dtype = checked_settings(weight, bits, group_size, symmetric, scale_dtype)
    channels = weight.shape[1]
    checks.matrix("hessian", hessian, (channels, channels))
    factor = factor_hessian(
        hessian.astype(checks.result_dtype(weight, hessian), copy=False), percdamp=percdamp
    )
    if factor.dead.any():
        weight = np.where(factor.dead, weight.dtype.type(0), weight)
    found = quantize_direct(weight, factor.upper, grid, group_indices(channels, size))
    report = GptqReport(float(found.losses.sum()), factor.damping, int(factor.dead.sum()))
    return stored(found, grid, size, dtype), report
