"""Weights on their grids, for every method: scales, nearest points, and what is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.settings import GridSettings
from numbacalib.ops.grid import grid_codes, grid_scales, stored_arrays
from numbacalib.ops.matrix import cast, from_host, split_rows, to_host
from numbacalib.ops.range_search import search_scales
from numbacalib.runtime import checks
from numbacalib.spec.grid import group_indices


def find_scales(weight: Any, settings: GridSettings) -> tuple[Any, Any]:
    """Scales and zero points of groups that are runs of channels, each [M, G], given or found."""
    if settings.fixed is not None:
        dtype = checks.result_dtype(weight)
        scales, zeros = settings.fixed
        own = to_host(zeros).astype(dtype) + dtype.type(settings.grid.offset)
        return cast(scales, dtype), from_host(own, scales)
    if settings.search is None:
        return grid_scales(weight, settings.group_size, settings.grid)
    searched = settings.search, settings.importance
    return search_scales(weight, settings.group_size, settings.grid, *searched)


def rounded(
    weight: Any, settings: GridSettings, scales: Any = None, zeros: Any = None
) -> QuantizedWeight:
    """Round each weight to the nearest point of its group's grid, given or found."""
    if scales is None:
        scales, zeros = find_scales(weight, settings)
    group_of = group_indices(weight.shape[1], settings.group_size)
    codes = grid_codes(weight, scales, zeros, group_of, settings.grid)
    (stored,), require_finite_scales = stored_runs(
        codes, scales, zeros, [len(codes)], [None], settings
    )
    require_finite_scales()
    return stored


def stored_runs(
    codes: Any,
    scales: Any,
    zeros: Any,
    rows: Sequence[int],
    g_idx: Sequence[NDArray[np.int64] | None],
    settings: GridSettings,
) -> tuple[list[QuantizedWeight], Callable[[], None]]:
    """Put what was found of runs of so many rows into the dtypes in which it is stored.

    `g_idx` are, for each run, the groups of the channels where they are not runs of channels. The
    function that comes with the weights raises if a scale is too large for its dtype.
    """
    if settings.fixed is not None:
        stored, require_finite_scales = list(settings.fixed), _nothing
    else:
        *stored, require_finite_scales = stored_arrays(
            scales, zeros, settings.scale_dtype, settings.grid
        )
    grid = settings.grid.bits, settings.group_size, settings.grid.symmetric
    runs = (split_rows(array, rows) for array in (codes, *stored))
    weights = [
        QuantizedWeight(
            codes,
            scales,
            zeros,
            *grid,
            own,
            element=settings.grid.element,
        )
        for codes, scales, zeros, own in zip(*runs, g_idx, strict=True)
    ]
    return weights, require_finite_scales


def _nothing() -> None:
    """Check nothing: given grids were checked when they came."""
