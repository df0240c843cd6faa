"""The loss that layer-wise quantization descends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods.quantized_weight import QuantizedWeight


def proxy_loss(weight: NDArray, quantized: QuantizedWeight, hessian: NDArray) -> float:
    """``trace(D H D^T)``, ``D = W - Q``: the squared error of the layer's outputs.

    With the Hessian ``2 / N * X^T X`` this is exactly ``2 / N * ||X D^T||^2``, whatever the number of
    tokens, and costs one product of [M, K] by [K, K].
    """
    difference = np.subtract(weight, quantized.dequantize(), dtype=np.float32)
    return float(np.vdot(difference @ hessian, difference))
