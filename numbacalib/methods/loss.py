"""Losses of a quantized weight against the original."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numbacalib.methods.quantized_weight import QuantizedWeight, StoredWeight
from numbacalib.ops.grid import start_counting_clipped
from numbacalib.ops.matrix import cast, weighted_sum
from numbacalib.ops.proxy_loss import start_trace_of_errors
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import start_finite_check


def proxy_loss(
    weight: Array, quantized: StoredWeight, hessian: Array, channel_scales: Array | None = None
) -> float:
    """``trace(D H D^T)``, ``D = W - Q``: the squared error of the layer's outputs.

    With the Hessian ``2 / N * X^T X`` this is exactly ``2 / N * ||X D^T||^2``, and costs one product of
    [M, K] by [K, K] for any number of tokens.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
        Its errors must be of magnitudes that float32 holds.
    quantized : QuantizedWeight or CodebookWeight
    hessian : array [K, K]
    channel_scales : array [K], optional
        Factors of the channels of `weight`, if the layer's inputs are divided by them and the Hessian is
        that of the undivided inputs: ``D = (W - Q) / s``.

    Returns
    -------
    float

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or the arrays are on different devices.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import proxy_loss, rtn
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> round(proxy_loss(weight, rtn(weight, bits=4, group_size=None), hessian), 3)
    0.608
    """
    return start_proxy_loss(weight, quantized, hessian, channel_scales)()


def start_proxy_loss(
    weight: Array, quantized: StoredWeight, hessian: Array, channel_scales: Array | None = None
) -> Callable[[], float]:
    """Start computing `proxy_loss`; return a function that waits for a GPU and returns it."""
    arrays = {"weight": weight, "hessian": hessian, "channel_scales": channel_scales}
    with arrays_of_one_device(**arrays) as (weight, hessian, channel_scales):
        _, channels = checks.matrix("weight", weight, ("M", "K"))
        checks.matrix("hessian", hessian, (channels, channels))
        if channel_scales is not None:
            checks.vector("channel_scales", channel_scales, channels)
        _check_shape(weight, quantized)
        return start_trace_of_errors(weight, quantized.dequantize(), hessian, channel_scales)


def clipped_share(weight: Array, quantized: QuantizedWeight) -> float:
    """Return the share of weights that lie more than one step past the ends of their grid.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    quantized : QuantizedWeight

    Returns
    -------
    float

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or the arrays are on different devices.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import clipped_share, rtn
    >>> quantized = rtn(np.array([[0, 3, 7, 15]], np.float32), bits=4, group_size=None)
    >>> clipped_share(np.array([[0, 3, 7, 20]], np.float32), quantized)
    0.25
    """
    return start_clipped_share(weight, quantized)()


def start_clipped_share(weight: Array, quantized: QuantizedWeight) -> Callable[[], float]:
    """Start computing `clipped_share`; return a function that waits for a GPU and returns it."""
    with arrays_of_one_device(weight=weight) as (weight,):
        checks.matrix("weight", weight, ("M", "K"))
        _check_shape(weight, quantized)
        scales = cast(quantized.scales, np.float32)
        form = quantized.bits, quantized.element
        grid = scales, quantized.zeros, quantized.group_of, *form
        count, size = start_counting_clipped(weight, *grid), math.prod(weight.shape)
    return lambda: count() / size


def require_layer(weight: Any, codes: Any, hessian: Any) -> np.dtype:
    """Check a layer's shapes, and that it is finite; return the dtype of its sums."""
    channels = codes.shape[1]
    checks.matrix("weight", weight, tuple(codes.shape))
    checks.matrix("hessian", hessian, (channels, channels))
    start_finite_check({"weight": weight, "hessian": hessian})()
    return checks.result_dtype(weight, hessian)


def errors_of(weight: Any, quantized: QuantizedWeight) -> Any:
    """``w - q``, in the dtype of the weight."""
    return cast(weighted_sum(weight, quantized.dequantize(), 1.0, -1.0), weight.dtype)


def _check_shape(weight: Any, quantized: Any) -> None:
    """Raise a ValueError if a quantized weight does not have the shape of its original weight."""
    if tuple(quantized.codes.shape) != tuple(weight.shape):
        raise ValueError(
            f"quantized: expected shape {list(weight.shape)}, got {list(quantized.codes.shape)}"
        )
