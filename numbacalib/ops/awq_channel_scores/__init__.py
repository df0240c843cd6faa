"""AWQ channel scores: how much each input channel matters to a linear layer's output."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.awq_channel_scores import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """The twin that stands on CUDA."""
    from numbacalib.ops.awq_channel_scores import gpu

    return gpu


def awq_channel_scores(
    activations: ArrayT, weights: ArrayT, *, out: ArrayT | None = None, stream: Any = None
) -> ArrayT:
    """Score each input channel by activation magnitude times mean weight magnitude.

    ``act_scale[j] = max_n |a[n, j]|`` and ``score[j] = mean_i(act_scale[j] * |w[i, j]|)``.

    Parameters
    ----------
    activations : array [N, K], float16, bfloat16, float32 or float64
        Inputs of the layer, one row a token; more axes before the last count as tokens, [B, S, K].
    weights : array [M, K], any of the same dtypes
        Weight of the layer, one row an output feature.
    out : array [K], optional
        Preallocated C-contiguous result, which shares no memory with the inputs.
    stream : CUDA stream, optional
        Where to launch; by default on the stream that the arrays are made on. CUDA arrays only.

    Returns
    -------
    array [K], float32 (float64 if an input is float64)
        A NaN or infinity in a channel shows in that channel's score, and so does a product or a sum of
        magnitudes that is beyond the type, as an infinity.

    Raises
    ------
    ValueError
        If a shape does not fit or an axis is empty.
    TypeError
        If a dtype is none of the four, or the arrays are on different devices.

    Notes
    -----
    Salience by activation magnitude is from Lin et al., "AWQ: Activation-aware Weight Quantization
    for LLM Compression and Acceleration" (2023), section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib import awq_channel_scores
    >>> activations = np.array([[1, -4, 0], [-2, 3, 0]], np.float32)
    >>> weights = np.array([[1, 1, 1], [3, -1, 1]], np.float32)
    >>> awq_channel_scores(activations, weights)
    array([4., 4., 0.], dtype=float32)
    """
    arrays: dict[str, Any] = {"activations": activations, "weights": weights, "out": out}
    with call(cpu, _gpu, stream, **arrays) as (kernels, activations, weights, out):
        rows = checks.tokens("activations", activations, ("N", "K"))
        channels = rows.shape[1]
        checks.matrix("weights", weights, ("M", channels))
        dtype = checks.result_dtype(activations, weights)
        if out is not None:
            checks.output("out", out, (channels,), dtype)
        return kernels.channel_scores(rows, weights, dtype, out)
