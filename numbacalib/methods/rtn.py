"""Round-to-nearest: each weight to the nearest point of its group's grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rounding import rounded
from numbacalib.methods.settings import (
    AskedGrid,
    GridArrays,
    delivery,
    grid_settings,
    pending_checks,
    results,
)
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import start_finite_check
from numbacalib.spec.grid import INTEGER
from numbacalib.spec.range_search import RangeSearch


def rtn(
    weight: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: ArrayT | None = None,
    scales: ArrayT | None = None,
    zeros: ArrayT | None = None,
    element: str = INTEGER,
    signed: bool = False,
    out: Sequence[ArrayT | None] | None = None,
    wait: bool = True,
) -> QuantizedWeight[ArrayT]:
    """Quantize a weight by rounding to nearest.

    NumPy arrays give NumPy arrays, CUDA arrays of any library give Numba device arrays, on the stream
    that they are made on.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    bits : int
        2 to 8.
    group_size : int or None, default 128
        Input channels that share a scale; divides K. None is one scale a row.
    symmetric : bool, default False
    scale_dtype : dtype, default float16
        Dtype that stores the scales; codes are chosen against the rounded scales.
    search : RangeSearch, optional
        Clip each group's range where that loses less; by default the grid spans all its weights.
    importance : array [K] or [M, K], optional
        Weights of the search's errors: the mean square of each input channel (llama.cpp's importance
        matrix), or Fisher information.
    scales, zeros : arrays [M, G], optional
        Grids that a format, or a caller, has fixed: scales in `scale_dtype`, of any sign but not 0, and
        zeros for unsigned codes, uint8 or real numbers, none with `symmetric`.
        ``value = (code - zero) * scale`` with codes in ``[0, 2 ** bits - 1]``.
    element : "int" or "e2m1", default "int"
        Kind of the codes: integers, or floating-point numbers of 4 bits on a symmetric grid, such as those
        of NVFP4 and MXFP4: see `fp4_scales`, which finds scales as these store them.
    signed : bool, default False
        Return codes and zeros less ``2 ** (bits - 1)``, int8, as some formats and kernels have them.
    out : sequence of three arrays or None, optional
        Arrays for codes [M, K], uint8 or int8, scales [M, G] in `scale_dtype`, and zeros [M, G] of the
        codes' dtype, or float32 if given ones are real; C-contiguous and not overlapping. Those that
        are None are allocated.
    wait : bool, default True
        False lets a call on a GPU return before the device is done. `QuantizedWeight.check` then waits,
        and raises the errors about values that the call would have raised: the codes are valid once it
        did not raise. On NumPy arrays it changes nothing.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    ValueError, TypeError
        If a setting does not fit, a weight is not finite (the first index is named), or the arrays are
        on different devices.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import rtn
    >>> quantized = rtn(np.array([[0, 3.4, 3.4, 15]], np.float32), bits=4, group_size=None)
    >>> quantized.codes
    array([[ 0,  3,  3, 15]], dtype=uint8)
    >>> quantized.scales, quantized.zeros
    (array([[1.]], dtype=float16), array([[0]], dtype=uint8))
    """
    options = {"importance": importance, "scales": scales, "zeros": zeros} | results(out)
    with arrays_of_one_device(weight=weight, **options) as (weight, *given):
        later = pending_checks(wait, weight)
        settings = grid_settings(
            weight,
            AskedGrid(bits, group_size, symmetric, scale_dtype, element, search),
            GridArrays(*given[:3]),
            delivery=delivery(signed, given[3:]),
            later=later,
        )
        check = start_finite_check({"weight": weight})
        if later is None:
            check()
        else:
            later.append(check)
        return rounded(weight, settings, later=later)
