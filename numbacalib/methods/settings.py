"""What a layer's weight is to become: checked before any work, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.runtime import checks
from numbacalib.runtime.finite import require_non_negative
from numbacalib.spec.grid import SCALE_BFLOAT16, SCALE_FLOAT16, SCALE_FLOAT32, Grid
from numbacalib.spec.range_search import RangeSearch

STORAGE = {"float16": SCALE_FLOAT16, "bfloat16": SCALE_BFLOAT16, "float32": SCALE_FLOAT32}
"""How the grid rounds scales, by the name of the dtype that stores them."""


class GridSettings(NamedTuple):
    """A grid, how its scales are found, and what they are stored in."""

    grid: Grid
    group_size: int
    """In channels; K is one scale a row."""
    scale_dtype: np.dtype
    search: RangeSearch | None
    importance: Any
    """Weights of the search's errors, [1, K] or [M, K]; or None."""


def grid_settings(
    weight: Any,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    scale_dtype: DTypeLike,
    search: RangeSearch | None = None,
    importance: Any = None,
) -> GridSettings:
    """Check what a finite weight is to become, or raise an error that names the argument.

    Arrays are as `arrays_of_one_device` returns them.
    """
    rows, channels = checks.matrix("weight", weight, ("M", "K"))
    bits = checks.integer("bits", bits, 2, 8)
    size = checks.group_size(group_size, channels)
    dtype = checks.float_dtype("scale_dtype", scale_dtype, tuple(STORAGE))
    grid = Grid(bits, checks.boolean("symmetric", symmetric), STORAGE[dtype.name])
    if search is not None:
        if not isinstance(search, RangeSearch):
            raise TypeError(f"search: expected a RangeSearch, got {type(search).__name__}")
        checks.integer("search.points", search.points, 1, 1 << 20)
        if not 0 <= checks.finite_number("search.least", search.least) < 1:
            raise ValueError(f"search.least: expected 0 to below 1, got {search.least}")
        if checks.finite_number("search.norm", search.norm) <= 0:
            raise ValueError(f"search.norm: expected a number above 0, got {search.norm}")
    if importance is not None:
        if search is None:
            raise ValueError("importance: expected None without a range search")
        importance = non_negative("importance", importance, [(channels,), (rows, channels)])
    return GridSettings(grid, size, dtype, search, importance)


def non_negative(name: str, array: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Check that an array has one of the shapes and holds finite values not below 0.

    Returns it as a matrix of shape [1, K] or [M, K].
    """
    checks.floats(name, array)
    if array.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {expected}, got {list(array.shape)}")
    matrix = checks.rows_of(array)
    require_non_negative(name, matrix)
    return matrix
