"""How far a quantized weight is from what it was."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods.quantized_weight import QuantizedWeight


def proxy_loss(
    weight: NDArray,
    quantized: QuantizedWeight,
    hessian: NDArray,
    channel_scales: NDArray | None = None,
) -> float:
    """``trace(D H D^T)``, ``D = W - Q``: the squared error of the layer's outputs.

    With the Hessian ``2 / N * X^T X`` this is exactly ``2 / N * ||X D^T||^2``, whatever the number of
    tokens, and costs one product of [M, K] by [K, K].

    Parameters
    ----------
    weight : array [M, K]
    quantized : QuantizedWeight
    hessian : array [K, K]
    channel_scales : array [K], optional
        What `weight` was multiplied by, channel by channel, where the layer's inputs are divided by
        it and the Hessian is that of the inputs before: ``D = (W - Q) / s``.
    """
    difference = np.subtract(weight, quantized.dequantize(), dtype=np.float32)
    if channel_scales is not None:
        difference /= channel_scales
    return float(np.vdot(difference @ hessian, difference))


def clipped_share(weight: NDArray, quantized: QuantizedWeight) -> float:
    """Share of the weights [M, K] that lie more than one step past the ends of their grid."""
    group_of = quantized.group_of
    steps = weight.astype(np.float32) / quantized.scales.astype(np.float32).take(group_of, axis=1)
    steps += quantized.zeros.astype(np.float32).take(group_of, axis=1)
    return float(((steps < -1) | (steps > 2**quantized.bits)).mean())
