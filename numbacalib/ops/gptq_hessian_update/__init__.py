"""Accumulation of the GPTQ Hessian, ``2 X^T X`` averaged over the rows of a block."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.gptq_hessian_update import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import call
from numbacalib.spec.hessian import block_weight


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.gptq_hessian_update import gpu

    return gpu


def gptq_hessian_update(
    hessian: ArrayT,
    x_block: ArrayT,
    *,
    alpha: float | None = None,
    beta: float = 1.0,
    out: ArrayT | None = None,
    stream: Any = None,
) -> ArrayT:
    """Return ``beta * H + alpha * X^T X``, symmetric to the bit.

    Parameters
    ----------
    hessian : array [K, K]
        Symmetric matrix so far; only one triangle of it is read.
    x_block : array [B, K], float16, bfloat16, float32 or float64
        Inputs of the layer, one row a token; more axes before the last count as tokens, [B, S, K].
        Float32 holds the sums for magnitudes below ``1.3e19 / sqrt(B)``; beyond, as for a NaN or
        infinity, that channel's row and column hold values that are not finite.
    alpha : float, optional
        Weight of the block, ``2 / B`` by default: with it the result is the Hessian of the squared
        error of a linear layer, averaged over the block.
    beta : float, default 1
        Weight of the matrix so far. A running mean over blocks of different length is one call a
        block: with n rows seen and B new ones, ``beta = n / (n + B)``, ``alpha = 2 / (n + B)``.
    out : array [K, K], optional
        Preallocated C-contiguous result; ``out=hessian`` updates in place, otherwise it shares no
        memory with the inputs.
    stream : CUDA stream, optional
        Stream to launch on; by default the one that the arrays are made on. CUDA arrays only.

    Returns
    -------
    array [K, K], float32 (float64 if an input is float64)

    Raises
    ------
    ValueError
        If a shape does not fit, an axis is empty, a factor is not finite, `out` shares memory with an
        input, or the Hessian holds a value that is not finite (the first index is named; nothing has
        been written).
    TypeError
        If a dtype is none of the four, or the arrays are on different devices.

    Notes
    -----
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022), section 3: ``H = 2 X X^T`` for inputs in columns.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib import gptq_hessian_update
    >>> hessian = np.zeros((2, 2), np.float32)
    >>> gptq_hessian_update(hessian, np.array([[1, 2], [3, 0]], np.float32))
    array([[10.,  2.],
           [ 2.,  4.]], dtype=float32)
    """
    arrays = {"hessian": hessian, "x_block": x_block, "out": out}
    in_place = "hessian" if out is hessian else None
    with call(cpu, _gpu, stream, in_place, **arrays) as (kernels, hessian, x_block, out):
        rows = checks.tokens("x_block", x_block, ("B", "K"))
        count, channels = rows.shape
        checks.matrix("hessian", hessian, (channels, channels))
        alpha = block_weight(count) if alpha is None else checks.finite_number("alpha", alpha)
        beta = checks.finite_number("beta", beta)
        dtype = checks.result_dtype(hessian, x_block)
        if out is not None:
            checks.output("out", out, (channels, channels), dtype)
        return kernels.rank_update(hessian, rows, alpha, beta, np.dtype(dtype), out)
