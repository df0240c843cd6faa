"""A short convolution over the positions of a sequence, channel by channel."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.causal_convolution import cpu
from numbacalib.ops.matrix import zeros
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.causal_convolution import gpu

    return gpu


def causal_convolution(x: Any, taps: Any, bias: Any = None) -> Any:
    """``bias[c] + sum_w taps[c, w] x[s, t - (W - 1) + w, c]``, where x before the first position is 0.

    Computed in float32; the last tap is of the position itself (arXiv 2412.06464, section 3.4).

    Parameters
    ----------
    x : array [S, T, C], C-contiguous, float16, bfloat16 or float32
        S sequences of T tokens.
    taps : float32 array [C, W], C-contiguous
    bias : float32 array [C], optional
        0 by default.

    Returns
    -------
    array [S, T, C], of the dtype of `x`
    """
    if bias is None:
        bias = zeros((taps.shape[0],), x)
    with call(cpu, _gpu, x=x, taps=taps, bias=bias) as (kernels, x, taps, bias):
        sequences, length, channels = x.shape
        tokens = x.reshape(sequences * length, channels)
        return kernels.convolve(tokens, length, taps, bias).reshape(*x.shape)
