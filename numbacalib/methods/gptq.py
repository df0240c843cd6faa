"""GPTQ of a layer, from its weight and its Hessian."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.linalg import HessianFactor, factor_hessian
from numbacalib.methods.order import column_order
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.settings import GridSettings, grid_settings
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.ops.grid import group_indices
from numbacalib.ops.matrix import diagonal, take, to_host
from numbacalib.ops.shrinkage import shrunk
from numbacalib.runtime import checks
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.range_search import RangeSearch

DAMPING_GROWTH = 4.0
"""By how much damping grows after a factorisation that failed."""
LEAST_GROWN_DAMPING = 0.01
"""What it grows to from less, 0 included."""


class GptqReport(NamedTuple):
    """How a layer went."""

    loss: float
    """``trace(D (H + damping) D^T)`` for ``D = W - Q``, the loss that GPTQ descends."""
    percdamp: float
    """Damping as a fraction of the mean of the Hessian's diagonal: as asked, or as it grew."""
    damping: float
    """What was added to the diagonal of the Hessian."""
    tries: int
    """Factorisations it took."""
    smallest_pivot: float
    """Least pivot of the damped Hessian, as a fraction of the mean of the Hessian's diagonal: one
    near `percdamp` is a direction that no input took, held up by damping alone."""
    dead: int
    """Input channels that no token excited; their weights became 0."""


def gptq(
    weight: Any,
    hessian: Any,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: Any = None,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float = 0.0,
    act_order: str = "none",
    static_groups: bool = False,
) -> tuple[QuantizedWeight, GptqReport]:
    """Quantize a weight by GPTQ, without inverting the Hessian.

    NumPy arrays give NumPy arrays, CUDA arrays of any library give Numba device arrays.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    hessian : array [K, K]
        As `gptq_hessian_update` accumulates it; its scale does not matter.
    bits : int
        2 to 8.
    group_size : int or None, default 128
        Input channels that share a scale; divides K. None is one scale a row.
    symmetric : bool, default False
    scale_dtype : dtype, default float16
        What scales are stored in; codes are chosen against the rounded scales.
    search : RangeSearch, optional
        Clip each group's range where that loses less; by default the grid spans all its weights.
    importance : array [K] or [M, K], optional
        Weights of the search's errors, such as ``np.diagonal(hessian)``.
    percdamp : float, default 0.01
        Damping, as a fraction of the mean of the Hessian's diagonal.
    damping_tries : int, default 5
        Factorisations to try: after one that fails, damping grows fourfold. 1 is to fail at once.
    shrinkage : float, default 0
        Share, 0 to 1, by which the Hessian moves toward its diagonal first: the remedy for fewer
        tokens than channels. See `numbacalib.methods.shrinkage_for`.
    act_order : "none", "desc" or "group_aware", default "none"
        Order of the columns: see `numbacalib.methods.order.column_order`. With "desc" alone, groups
        are runs in that order and the result has a `g_idx`; with `static_groups`, or with
        "group_aware", they stay as they are.
    static_groups : bool, default False
        Find all scales from the weights as they come, before any is compensated.

    Raises
    ------
    ValueError, TypeError
        If a setting does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.
    numpy.linalg.LinAlgError
        If the damped Hessian is not positive definite after all tries.

    Notes
    -----
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers" (2022); `quantize_direct` has the form without an inverse.
    """
    weight, hessian, importance = arrays_of_one_device(
        weight=weight, hessian=hessian, importance=importance
    )
    settings = grid_settings(weight, bits, group_size, symmetric, scale_dtype, search, importance)
    channels = weight.shape[1]
    checks.matrix("hessian", hessian, (channels, channels))
    shrinkage = checks.finite_number("shrinkage", shrinkage)
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage: expected 0 to 1, got {shrinkage}")
    dtype = checks.result_dtype(weight, hessian)
    spread = to_host(diagonal(hessian)).astype(np.float64)
    order = column_order(spread, act_order, settings.group_size)
    if order is not None:
        require_finite("hessian", hessian)  # while indices are those of the argument
        hessian = take(take(hessian, order, 0), order, 1)
    if shrinkage:
        hessian = shrunk(hessian, shrinkage)
    factor, percdamp, tries = _factor(hessian, percdamp, damping_tries, dtype)
    quantized, loss = _sweep(weight, factor.upper, spread == 0, order, settings, static_groups)

    pivots = to_host(diagonal(factor.upper)).astype(np.float64) ** 2
    pivots = pivots[spread[slice(None) if order is None else order] != 0]
    smallest = float(pivots.min() / spread.mean()) if len(pivots) else 0.0
    return quantized, GptqReport(loss, percdamp, factor.damping, tries, smallest, factor.dead_count)


def _factor(
    hessian: Any, percdamp: float, damping_tries: int, dtype: np.dtype
) -> tuple[HessianFactor, float, int]:
    """Factor with as much damping as it takes; also return that damping and the tries."""
    checks.integer("damping_tries", damping_tries, 1, 100)
    tries = 1
    while True:
        try:
            return factor_hessian(hessian, percdamp=percdamp, dtype=dtype), percdamp, tries
        except np.linalg.LinAlgError:
            if tries == damping_tries:
                raise
        percdamp = max(DAMPING_GROWTH * percdamp, LEAST_GROWN_DAMPING)
        tries += 1


def _sweep(
    weight: Any,
    upper: Any,
    dead: NDArray[np.bool_],
    order: NDArray[np.int64] | None,
    settings: GridSettings,
    static_groups: bool,
) -> tuple[QuantizedWeight, float]:
    """Visit the columns in the order of the factor, and put the codes back where they belong."""
    groups = group_indices(weight.shape[1], settings.group_size)
    if dead.any():
        weight = take(weight, np.where(dead, -1, np.arange(len(dead))), 1)
    visited = weight if order is None else take(weight, order, 1)
    if static_groups:
        scales, zeros = settings.scales(weight)
        group_of = groups if order is None else groups[order]
        found = quantize_direct(visited, upper, settings.grid, group_of, scales, zeros)
    else:
        importance = settings.importance
        if importance is not None and order is not None:
            importance = take(importance, order, 1)
        ranges = {"search": settings.search, "importance": importance}
        found = quantize_direct(visited, upper, settings.grid, groups, **ranges)
    loss = float(to_host(found.losses).sum())
    if order is None:
        return settings.stored(found.codes, found.scales, found.zeros), loss
    natural = np.argsort(order)
    codes = take(found.codes, natural, 1)
    if static_groups:
        return settings.stored(codes, found.scales, found.zeros), loss
    group_of = groups[natural]
    first = group_of[:: settings.group_size]
    if (group_of == first[groups]).all():  # the groups are still runs of channels
        scales, zeros = (take(array, first, 1) for array in (found.scales, found.zeros))
        return settings.stored(codes, scales, zeros), loss
    return settings.stored(codes, found.scales, found.zeros, group_of), loss
