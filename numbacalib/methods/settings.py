"""Settings of grids and searches, checked before any work, in one way for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

from numbacalib.ops.grid import shifted
from numbacalib.ops.matrix import cast
from numbacalib.ops.matrix import zeros as zeros_like
from numbacalib.runtime import checks
from numbacalib.runtime.backend import is_cuda_array
from numbacalib.runtime.finite import (
    start_finite_check,
    start_non_negative_check,
    start_non_zero_check,
)
from numbacalib.spec.grid import (
    E2M1,
    ELEMENTS,
    INTEGER,
    SCALE_BFLOAT16,
    SCALE_FLOAT16,
    SCALE_FLOAT32,
    Grid,
)
from numbacalib.spec.range_search import RangeSearch
from numbacalib.spec.small_floats import BITS

STORAGE = {"float16": SCALE_FLOAT16, "bfloat16": SCALE_BFLOAT16, "float32": SCALE_FLOAT32}
"""Rounding of scales by the grid, by the name of the dtype that stores them."""

LEAST_UNFIT_ZERO = float(1 << 20)
"""Bound of given zeros, in scales: far beyond any grid's codes, and in the domain of float32's `rint`."""


class GridSettings(NamedTuple):
    """A grid, the search for its scales, and the dtype that stores them."""

    grid: Grid
    group_size: int
    """Channels that share a scale; K for one scale a row."""
    scale_dtype: np.dtype
    search: RangeSearch | None
    importance: Any
    """Weights of the search's errors, [1, K] or [M, K]; or None."""
    fixed: FixedGrids | None = None
    """Grids that were given, instead of scales to find."""
    hessian: Any = None
    """Of the inputs, [K, K], for a `GridFinder` that weighs errors by its blocks; or None."""
    largest: float | None = None
    """Largest magnitude of all weights that are quantized together, for a `GridFinder`."""
    delivery: Delivery | None = None
    """Form of the results that the caller requested; None for the usual one."""


class Delivery(NamedTuple):
    """Form of the results that a caller requested."""

    signed: bool
    """True for codes and zeros less ``2 ** (bits - 1)``."""
    out: Sequence[Any] = (None, None, None)
    """Arrays for the codes [M, K], scales and zeros [M, G]; None to allocate one."""


def results(out: Any) -> dict[str, Any]:
    """Return the three arrays of ``out=``, or None for each, by their names in errors."""
    given = (None, None, None) if out is None else out
    if not isinstance(given, (tuple, list)) or len(given) != 3:
        raise TypeError(f"out: expected three arrays or None, got {type(out).__name__}")
    return {f"out[{number}]": array for number, array in enumerate(given)}


def delivery(signed: bool, out: Sequence[Any]) -> Delivery | None:
    """Return the requested form of results; None for the usual one."""
    asked = checks.boolean("signed", signed) or any(array is not None for array in out)
    return Delivery(bool(signed), out) if asked else None


def pending_checks(wait: bool, array: Any) -> list[Callable[[], None]] | None:
    """Return a list for checks that the call does not wait for; None if it waits."""
    return None if checks.boolean("wait", wait) or not is_cuda_array(array) else []


class FixedGrids(NamedTuple):
    """Scales and zeros of a weight's groups that a format, or a caller, has fixed."""

    scales: Any
    """[M, G], in the dtype that stores them."""
    zeros: Any
    """[M, G], for stored codes: uint8, or float32 if they are real."""


class FoundGrids(NamedTuple):
    """Grids that a `GridFinder` found."""

    scales: Any
    """[M, G], in the dtype that stores them."""
    zeros: Any
    """As `gptq` takes them; None on the symmetric grid."""
    global_scale: float | None = None
    """Number by which the scales are already divided, if a format stores one."""


class Refit(NamedTuple):
    """Parts of a grid that `refit_scales` may change, and the dtype that stores them."""

    zeros: str = "kept"
    least_zero: int = 0
    dtype: np.dtype | None = None
    """Dtype of scales and biases in the file, if it is narrower than the grid's own."""


class GridFinder(Protocol):
    """Search of a format for grids that it can store, for `LayerSettings.find_grid`."""

    @property
    def refit(self) -> Refit | None:
        """Parts that may still change once codes are known; None if nothing may."""

    def __call__(self, weight: Any, settings: GridSettings) -> FoundGrids:
        """Return scales [M, G] in ``settings.scale_dtype`` and zeros as `gptq` takes them.

        `weight` [M, K], the arrays of `settings` and the returned ones are on one device.
        """


class AskedGrid(NamedTuple):
    """Unchecked settings of a grid, from a caller."""

    bits: int
    group_size: int | None
    symmetric: bool
    scale_dtype: DTypeLike
    element: str = INTEGER
    search: RangeSearch | None = None


class GridArrays(NamedTuple):
    """Arrays that belong to a grid, from `arrays_of_one_device`; None for each that is missing."""

    importance: Any = None
    scales: Any = None
    zeros: Any = None


NO_ARRAYS = GridArrays()


def grid_settings(
    weight: Any,
    asked: AskedGrid,
    arrays: GridArrays = NO_ARRAYS,
    *,
    delivery: Delivery | None = None,
    later: list[Callable[[], None]] | None = None,
) -> GridSettings:
    """Check the settings of the grid for a finite weight; errors name the argument.

    Checks of values in progress on a device go to `later` if it is given; otherwise the call waits for
    them.
    """
    started: list[Callable[[], None]] = []
    rows, channels = checks.matrix("weight", weight, ("M", "K"))
    bits = checks.integer("bits", asked.bits, 2, 8)
    size = checks.group_size(asked.group_size, channels)
    dtype = checks.float_dtype("scale_dtype", asked.scale_dtype, tuple(STORAGE))
    symmetric = checks.boolean("symmetric", asked.symmetric)
    element, search = asked.element, asked.search
    check_element(element, bits, symmetric)
    grid = Grid(bits, symmetric, STORAGE[dtype.name], element=element)
    if search is not None:
        _check_search(search, grid)
        grid = grid._replace(full_range=bool(search.full_range))
    importance = arrays.importance
    if importance is not None:
        if search is None:
            raise ValueError("importance: expected None without a range search")
        shapes = [(channels,), (rows, channels)]
        importance, check = _non_negative("importance", importance, shapes)
        started.append(check)
    fixed = None
    if arrays.scales is not None:
        if search is not None:
            raise ValueError("search: expected None where scales are given")
        fixed = _fixed_grids(arrays, (rows, channels // size), dtype, grid, started)
    elif arrays.zeros is not None:
        raise ValueError("zeros: expected None without scales")
    if delivery is not None:
        if delivery.signed and element != INTEGER:
            raise ValueError(f"signed: expected False with element {element}, got True")
        _check_delivery(delivery, (rows, channels), size, dtype, fixed)
    if later is None:
        for check in started:
            check()
    else:
        later += started
    return GridSettings(grid, size, dtype, search, importance, fixed, delivery=delivery)


def _check_search(search: Any, grid: Grid) -> None:
    """Check a search of ranges on a grid."""
    if not isinstance(search, RangeSearch):
        raise TypeError(f"search: expected a RangeSearch, got {type(search).__name__}")
    integers = grid.symmetric and grid.element == INTEGER
    if checks.boolean("search.full_range", search.full_range) and not integers:
        raise ValueError("search.full_range: expected False without symmetric integers")
    checks.integer("search.points", search.points, 1, 1 << 20)
    if not 0 <= checks.finite_number("search.least", search.least) < 1:
        raise ValueError(f"search.least: expected 0 to below 1, got {search.least}")
    if checks.finite_number("search.norm", search.norm) <= 0:
        raise ValueError(f"search.norm: expected a number above 0, got {search.norm}")


def _check_delivery(
    delivery: Delivery,
    shape: tuple[int, int],
    group_size: int,
    scale_dtype: np.dtype,
    fixed: FixedGrids | None,
) -> None:
    """Check the arrays for results."""
    rows, channels = shape
    integers: np.dtype = np.dtype(np.int8 if delivery.signed else np.uint8)
    zeros = integers
    if fixed is not None and fixed.zeros.dtype == np.float32:
        zeros = np.dtype(np.float32)
    grids = rows, channels // group_size
    expected = (shape, integers), (grids, scale_dtype), (grids, zeros)
    for number, (out, wanted) in enumerate(zip(delivery.out, expected, strict=True)):
        if out is not None:
            checks.output(f"out[{number}]", out, *wanted)


def check_element(element: str, bits: int, symmetric: bool) -> None:
    """Check the kind of the codes, and that it has this width and this grid.

    Raises
    ------
    ValueError
    """
    if element not in ELEMENTS:
        raise ValueError(f"element: expected {' or '.join(ELEMENTS)}, got {element!r}")
    if element == E2M1 and bits != BITS:
        raise ValueError(f"bits: expected {BITS} with element {E2M1}, got {bits}")
    if element == E2M1 and not symmetric:
        raise ValueError(f"symmetric: expected True with element {E2M1}, got False")


def _fixed_grids(
    arrays: GridArrays,
    shape: tuple[int, int],
    dtype: np.dtype,
    grid: Grid,
    started: list[Callable[[], None]],
) -> FixedGrids:
    """Check given scales and zeros, and add missing zeros; checks of values go to `started`."""
    scales, zeros = arrays.scales, arrays.zeros
    checks.matrix("scales", scales, shape)
    if scales.dtype != dtype:
        raise TypeError(f"scales: expected scale_dtype {dtype}, got {scales.dtype}")
    started.append(start_non_zero_check("scales", scales))
    if grid.symmetric:
        if zeros is not None:
            raise ValueError("zeros: expected None with symmetric")
        middle = shifted(zeros_like(shape, scales), -grid.offset, np.uint8)
        return FixedGrids(scales, middle)
    if zeros is None:
        raise ValueError(f"zeros: expected {list(shape)} with scales without symmetric, got None")
    if zeros.dtype != np.uint8:
        checks.matrix("zeros", zeros, shape)
        zeros = cast(zeros, np.float32)
        started.append(start_finite_check({"zeros": zeros}, limit=LEAST_UNFIT_ZERO))
    elif tuple(zeros.shape) != shape:
        raise ValueError(f"zeros: expected shape {list(shape)}, got {list(zeros.shape)}")
    return FixedGrids(scales, zeros)


def non_negative(name: str, array: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Check that an array has one of the shapes and holds finite values not below 0.

    Returns it as a matrix of shape [1, K] or [M, K].
    """
    matrix, check = _non_negative(name, array, shapes)
    check()
    return matrix


def _non_negative(
    name: str, array: Any, shapes: Sequence[tuple[int, ...]]
) -> tuple[Any, Callable[[], None]]:
    """Start the checks of `non_negative`; also return a function that waits for that of values."""
    checks.floats(name, array)
    if array.shape not in shapes:
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{name}: expected shape {expected}, got {list(array.shape)}")
    matrix = checks.rows_of(array)
    return matrix, start_non_negative_check(name, matrix)
