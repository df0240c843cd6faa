"""GPTQ: quantization column by column, each column's error compensated in the columns after it."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.gptq_quantize_column import cpu
from numbacalib.ops.gptq_quantize_column.factor import upper_factor
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import call
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.gptq import ColumnGrids, GroupedCodes
from numbacalib.spec.grid import Grid


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.gptq_quantize_column import gpu

    return gpu


def gptq_quantize_column(
    weight: ArrayT,
    h_inv: ArrayT,
    num_bits: int,
    group_size: int | None,
    symmetric: bool,
    *,
    out: tuple[ArrayT, ArrayT, ArrayT] | None = None,
    stream: Any = None,
) -> tuple[ArrayT, ArrayT, ArrayT]:
    """Quantize a weight with error compensation by the inverse Hessian.

    Column by column, left to right, with each group's scale and zero point found at its first column
    from the weights as compensated so far::

        q_j = grid(w_j);  e = (w_j - q_j) / U[j, j];  w[j+1:] -= e * U[j, j+1:]

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
        One row an output feature.
    h_inv : array [K, K]
        Upper Cholesky factor ``U`` of the inverse Hessian, as `gptq_inverse_hessian` returns it. A
        symmetric matrix that is not diagonal is taken as the inverse Hessian itself and factored.
    num_bits : int
        2 to 8.
    group_size : int or None
        Input channels that share a scale; divides K. None is one scale a row.
    symmetric : bool
        Grid: see `numbacalib.spec.grid`.
    out : tuple of arrays, optional
        Preallocated C-contiguous results ``([M, K], [M, G], [M, G])``, which share no memory with each
        other and the inputs.
    stream : CUDA stream, optional
        Stream to launch on; by default the one that the arrays are made on. CUDA arrays only.

    Returns
    -------
    dequantized : array [M, K], float32 (float64 if an input is float64)
    scales, zeros : arrays [M, G] of the same dtype, G = K / group_size
        ``dequantized = (code - zero) * scale``.

    Raises
    ------
    ValueError
        If a shape or setting does not fit, a value is not finite (the first index is named), or
        `h_inv` is neither upper triangular nor symmetric, or its diagonal is not positive.
    TypeError
        If a dtype is none of the four, or the arrays are on different devices.

    Notes
    -----
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022), algorithm 1. Blocks only batch the updates: every column sees the
    compensation of all columns before it, and so does every group's scale.

    Examples
    --------
    Correlated inputs let the second 3.4 make up for the first:

    >>> import numpy as np
    >>> from numbacalib import gptq_inverse_hessian, gptq_quantize_column
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> factor = gptq_inverse_hessian(hessian)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> values, scales, zeros = gptq_quantize_column(weight, factor, 4, None, False)
    >>> values
    array([[ 0.,  3.,  4., 15.]], dtype=float32)
    >>> scales, zeros
    (array([[1.]], dtype=float32), array([[0.]], dtype=float32))
    """
    names = "out[0]", "out[1]", "out[2]"
    if out is not None and not (isinstance(out, tuple) and len(out) == len(names)):
        raise TypeError(f"out: expected a tuple of three arrays, got {type(out).__name__}")
    arrays: dict[str, Any] = {"weight": weight, "h_inv": h_inv}
    arrays |= zip(names, out or [None] * len(names), strict=True)
    with call(cpu, _gpu, stream, **arrays) as (kernels, weight, h_inv, *results):
        rows, channels = checks.matrix("weight", weight, ("M", "K"))
        checks.matrix("h_inv", h_inv, (channels, channels))
        bits = checks.integer("num_bits", num_bits, 2, 8)
        size = checks.group_size(group_size, channels)
        symmetric = checks.boolean("symmetric", symmetric)
        dtype = checks.result_dtype(weight, h_inv)
        if out is not None:
            groups = channels // size
            shapes = (rows, channels), (rows, groups), (rows, groups)
            for name, array, shape in zip(names, results, shapes, strict=True):
                checks.output(name, array, shape, dtype)
        require_finite("weight", weight)
        require_finite("h_inv", h_inv)
        factor = upper_factor(kernels, h_inv, dtype)
        grid = Grid(bits, symmetric)
        taken = None if out is None else tuple(results)
        return kernels.quantize_columns(weight, factor, grid, size, dtype, taken)


def quantize_direct(weight: Any, upper: Any, grids: ColumnGrids) -> GroupedCodes:
    """Quantize from the factor of the Hessian itself, with no inverse: the same codes, less work.

    With ``D = W - Q`` and ``H = R R^T``, ``e = D R``; so a block of columns b is compensated by
    ``W_b + D_{<b} (R_{<b, b} R_bb^-1)``, a matrix product, and inside it by the recurrence of
    `gptq_quantize_column` with ``U_bb = R_bb^-1``.

    Parameters
    ----------
    weight : array [E * M, K]
        Columns of dead channels already zero. Each M rows have a factor of their own.
    upper : array [E, K, K]
        ``R``, upper triangular, of the accumulators' dtype, C-contiguous.
    grids : ColumnGrids
    """
    arrays = {"scales": grids.scales, "zeros": grids.zeros, "importance": grids.importance}
    with call(cpu, _gpu, weight=weight, upper=upper, **arrays) as (kernels, weight, upper, *given):
        grids = grids._replace(**dict(zip(arrays, given, strict=True)))
        return kernels.sweep_runs(weight, upper, grids)
