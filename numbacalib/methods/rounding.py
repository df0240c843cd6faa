"""Rounding to grids, for every method: scales, nearest points, and conversion to stored dtypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.settings import Delivery, GridSettings
from numbacalib.ops.grid import grid_codes, grid_scales, shifted, stored_arrays
from numbacalib.ops.matrix import cast, split_rows
from numbacalib.ops.range_search import search_scales
from numbacalib.runtime import checks
from numbacalib.spec.grid import group_indices


def find_scales(weight: Any, settings: GridSettings) -> tuple[Any, Any]:
    """Scales and zero points of groups that are runs of channels, each [M, G], given or found."""
    if settings.fixed is not None:
        dtype = checks.result_dtype(weight)
        scales, zeros = settings.fixed
        return cast(scales, dtype), shifted(zeros, settings.grid.offset, dtype)
    if settings.search is None:
        return grid_scales(weight, settings.group_size, settings.grid)
    searched = settings.search, settings.importance
    return search_scales(weight, settings.group_size, settings.grid, *searched)


def rounded(
    weight: Any,
    settings: GridSettings,
    scales: Any = None,
    zeros: Any = None,
    *,
    later: Sequence[Callable[[], None]] | None = None,
) -> QuantizedWeight:
    """Round each weight to the nearest point of its group's grid, given or found.

    With checks for `later`, the call does not wait: the result has these checks and its own.
    """
    if scales is None:
        scales, zeros = find_scales(weight, settings)
    group_of = group_indices(weight.shape[1], settings.group_size)
    codes = grid_codes(weight, scales, zeros, group_of, settings.grid)
    (stored,), require_finite_scales = stored_runs(
        codes, scales, zeros, [len(codes)], [None], settings
    )
    if later is None:
        require_finite_scales()
        return stored
    return replace(stored, checks=(*later, require_finite_scales))


def stored_runs(
    codes: Any,
    scales: Any,
    zeros: Any,
    rows: Sequence[int],
    g_idx: Sequence[NDArray[np.int64] | None],
    settings: GridSettings,
) -> tuple[list[QuantizedWeight], Callable[[], None]]:
    """Convert codes and grids of runs of `rows` rows to the dtypes in which they are stored.

    `g_idx` has, for each run, the groups of the channels, or None if groups are runs of channels. The
    function that is returned too raises if a scale is too large for its dtype.
    """
    if settings.fixed is not None:
        stored, require_finite_scales = list(settings.fixed), _nothing
    else:
        *stored, require_finite_scales = stored_arrays(
            scales, zeros, settings.scale_dtype, settings.grid
        )
    grid = settings.grid.bits, settings.group_size, settings.grid.symmetric
    if settings.delivery is not None:
        codes, *stored = _delivered((codes, *stored), settings.delivery, settings.grid.bits)
    runs = split_rows((codes, *stored), rows)
    weights = [
        QuantizedWeight(codes, scales, zeros, *grid, own, element=settings.grid.element)
        for (codes, scales, zeros), own in zip(runs, g_idx, strict=True)
    ]
    return weights, require_finite_scales


def _delivered(arrays: Sequence[Any], delivery: Delivery, bits: int) -> list[Any]:
    """Return codes, scales and zeros in the form, and in the arrays, that the caller requested."""
    less = -(1 << (bits - 1)) if delivery.signed else 0
    found = []
    for array, offset, out in zip(arrays, (less, 0, less), delivery.out, strict=True):
        signed = offset and array.dtype == np.uint8
        dtype = np.dtype(np.int8) if signed else array.dtype
        as_it_is = out is None and not offset
        found.append(array if as_it_is else shifted(array, offset, dtype, out))
    return found


def _nothing() -> None:
    """Check nothing: given grids were checked with the arguments."""
