"""Scales of FP4 formats, which are themselves small floating-point numbers."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

import numpy as np

from numbacalib.methods.settings import non_negative
from numbacalib.ops.columns import magnitude_max
from numbacalib.ops.fp4_scales import search_fp4_scales
from numbacalib.ops.matrix import to_host
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.small_floats import FP4, Fp4, nvfp4_global_scale


class Fp4Scales(NamedTuple, Generic[ArrayT]):
    """Scales of a weight's groups as an FP4 format stores them."""

    scales: ArrayT
    """float32 [M, G]: factors of the points of E2M1."""
    global_scale: np.float32 | None
    """Number by which the scales are already divided, so that ``scales * global_scale`` are E4M3; None
    with MXFP4."""


def fp4_scales(
    weight: ArrayT,
    form: str,
    *,
    search: bool = True,
    hessian: ArrayT | None = None,
    importance: ArrayT | None = None,
    global_scale: float | None = None,
) -> Fp4Scales[ArrayT]:
    """Find the scales of a weight's groups as an FP4 format stores them.

    They are arguments of `gptq` and `rtn` with ``element="e2m1"``. Without a search a group's scale puts
    its largest weight at 6: NVFP4 takes the nearest scale to that, MXFP4 the least with which the weight is
    below 7. A search tries the scales around that one, up to 1.75 times as large or a third smaller, or
    with MXFP4 one power of two more and less.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    form : "mxfp4" or "nvfp4"
        With groups of 32, or of 16.
    search : bool, default True
    hessian : array [K, K], optional
        A group's loss in the search is ``d H_gg d^T``, with d its errors and ``H_gg`` its block.
    importance : array [K] or [M, K], optional
        Weights of the squared errors of the search, instead of a Hessian.
    global_scale : float, optional
        With NVFP4: one for all weights that a runtime joins, such as q, k and v. By default the largest
        scale of the weight is the largest of E4M3.

    Returns
    -------
    Fp4Scales

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.

    Notes
    -----
    Scales around 1 and 3/2 of the usual one: arXiv 2512.02010; their choice by the block of H: arXiv
    2606.07618.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import fp4_scales, rtn
    >>> weight = np.linspace(-1.5, 1.5, 32, dtype=np.float32).reshape(1, 32)
    >>> found = fp4_scales(weight, "mxfp4")
    >>> found.scales
    array([[0.25]], dtype=float32)
    >>> grid = {"bits": 4, "group_size": 32, "symmetric": True, "element": "e2m1"}
    >>> quantized = rtn(weight, scales=found.scales, scale_dtype=np.float32, **grid)
    >>> np.unique(np.abs(quantized.dequantize())).tolist()
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.5]
    """
    if form not in FP4:
        raise ValueError(f"form: expected {' or '.join(FP4)}, got {form!r}")
    if hessian is not None and importance is not None:
        raise ValueError("importance: expected None with a Hessian")
    kind = FP4[form]
    arrays = {"weight": weight, "hessian": hessian, "importance": importance}
    with arrays_of_one_device(**arrays) as (weight, hessian, importance):
        rows, channels = checks.matrix("weight", weight, ("M", "K"))
        if channels % kind.group_size:
            raise ValueError(f"weight: expected K a multiple of {kind.group_size}, got {channels}")
        require_finite("weight", weight)
        if hessian is not None:
            checks.matrix("hessian", hessian, (channels, channels))
            require_finite("hessian", hessian)
        if importance is not None:
            importance = non_negative("importance", importance, [(channels,), (rows, channels)])
        divisor = _divisor(weight, kind, global_scale)
        steps = kind.scales.steps() if checks.boolean("search", search) else np.zeros(1, np.int64)
        scales = search_fp4_scales(weight, kind, divisor, steps, hessian, importance)
        return Fp4Scales(scales, divisor if kind.global_scale else None)


def _divisor(weight: Any, kind: Fp4, given: float | None) -> np.float32:
    """Global scale of a weight; 1 if the form has none."""
    if given is not None:
        if not kind.global_scale:
            raise ValueError("global_scale: expected None with mxfp4, which has none")
        number = np.float32(checks.finite_number("global_scale", given))
        if not 0 < number < np.inf:
            raise ValueError(f"global_scale: expected a float32 above 0, got {given}")
        return number
    if not kind.global_scale:
        return np.float32(1)
    largest = to_host(magnitude_max(weight, np.dtype(np.float32))).max()
    return nvfp4_global_scale(float(largest))
