"""Scales refitted to the codes that a method chose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.ops.matrix import cast, take, weighted_sum
from numbacalib.ops.scale_refit import refitted_scales
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.grid import INTEGER


def refit_scales(
    weight: ArrayT, quantized: QuantizedWeight[ArrayT], hessian: ArrayT
) -> QuantizedWeight[ArrayT]:
    """Give each row the scales that lose least for the codes and zeros that it has.

    For whatever method chose the codes, on either grid, with groups of any kind. A row's scales are
    solved together, rounded to the dtype in which they are stored, and taken where ``trace(D H D^T)``
    falls then; so the loss never rises.

    Parameters
    ----------
    weight : array [M, K]
        What the codes are to stand for: the layer's weight, or its `propagated_target`.
    quantized : QuantizedWeight
    hessian : array [K, K]

    Returns
    -------
    QuantizedWeight
        The same codes, with the scales of each row that lose less.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.

    Notes
    -----
    arXiv 2602.02126 solves for the scale of a channel; with G groups it is a system of G equations a row:
    see `numbacalib.spec.scale_refit`. It costs ``M K^2`` operations, about as much as GPTQ itself.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import proxy_loss, refit_scales, rtn
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> quantized = rtn(weight, bits=4, group_size=None)
    >>> refitted = refit_scales(weight, quantized, hessian)
    >>> proxy_loss(weight, refitted, hessian) < 0.1 * proxy_loss(weight, quantized, hessian)
    True
    """
    if quantized.element != INTEGER:
        raise ValueError(f"quantized: expected integer codes, got {quantized.element}")
    codes, zeros, scales = quantized.codes, quantized.zeros, quantized.scales
    arrays = {
        "weight": weight,
        "hessian": hessian,
        "codes": codes,
        "zeros": zeros,
        "scales": scales,
    }
    with arrays_of_one_device(**arrays) as (weight, hessian, codes, zeros, scales):
        channels = codes.shape[1]
        checks.matrix("weight", weight, tuple(codes.shape))
        checks.matrix("hessian", hessian, (channels, channels))
        require_finite("weight", weight)
        require_finite("hessian", hessian)
        dtype = checks.result_dtype(weight, hessian)
        errors = cast(weighted_sum(weight, quantized.dequantize(), 1.0, -1.0), dtype)
        hessian = cast(hessian, dtype)
        if quantized.g_idx is not None:  # groups become runs of channels
            runs = np.argsort(quantized.g_idx, kind="stable")
            codes, errors = take(codes, runs, 1), take(errors, runs, 1)
            hessian = take(take(hessian, runs, 0), runs, 1)
        return replace(quantized, scales=refitted_scales(codes, zeros, scales, errors, hessian))
