"""GPTQ of a layer, from its weight and its Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.linalg import factor_hessians
from numbacalib.methods.gptq_report import GptqReport
from numbacalib.methods.order import ACT_ORDERS, column_orders
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rounding import find_scales, stored_runs
from numbacalib.methods.settings import GridSettings, grid_settings
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.ops.matrix import diagonals, stacked_rows, take, to_host, without_columns
from numbacalib.ops.shrinkage import shrunk
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device, is_cuda_array
from numbacalib.runtime.finite import require_finite, start_finite_check
from numbacalib.spec.grid import group_indices
from numbacalib.spec.range_search import RangeSearch

DAMPING_GROWTH = 4.0
"""By how much damping grows after a factorisation that failed."""
LEAST_GROWN_DAMPING = 0.01
"""What it grows to from less, 0 included."""
LARGEST_DAMPING = 1e6
"""What it may be and grow to: with more, float32 sees nothing of the Hessian beside it."""
ROUNDING = 1e-6
"""Share of the mean diagonal that float32 products of Hessians leave open."""
BATCH_BYTES = 4 << 30
"""Of float32 Hessians that go together through a GPU, beside factors and couplings of the same size."""


@dataclass(frozen=True)
class _Solver:
    """How the Hessians are prepared and in which order the columns are quantized; see `gptq`."""

    percdamp: float
    damping_tries: int
    shrinkage: float
    act_order: str
    static_groups: bool

    def __post_init__(self) -> None:
        """Check each setting, before any work."""
        if not 0 <= checks.finite_number("percdamp", self.percdamp) <= LARGEST_DAMPING:
            raise ValueError(f"percdamp: expected 0 to {LARGEST_DAMPING:g}, got {self.percdamp}")
        checks.boolean("static_groups", self.static_groups)
        checks.integer("damping_tries", self.damping_tries, 1, 100)
        if not 0 <= checks.finite_number("shrinkage", self.shrinkage) <= 1:
            raise ValueError(f"shrinkage: expected 0 to 1, got {self.shrinkage}")
        if self.act_order not in ACT_ORDERS:
            raise ValueError(f"act_order: expected {', '.join(ACT_ORDERS)}, got {self.act_order!r}")


def gptq(
    weight: ArrayT,
    hessian: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: ArrayT | None = None,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float = 0.0,
    act_order: str = "none",
    static_groups: bool = False,
) -> QuantizedWeight[ArrayT]:
    """Quantize a weight by GPTQ, without inverting the Hessian.

    NumPy arrays give NumPy arrays, CUDA arrays of any library give Numba device arrays, on the stream
    that they are made on.

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
        Damping, as a fraction of the mean of the Hessian's diagonal, 0 to 1e6.
    damping_tries : int, default 5
        Factorisations to try: after one that fails, damping grows fourfold. 1 is to fail at once.
    shrinkage : float, default 0
        Share, 0 to 1, by which the Hessian moves toward its diagonal first: the remedy for fewer
        tokens than channels. See `numbacalib.methods.shrinkage_for`.
    act_order : "none", "desc" or "group_aware", default "none"
        Order of the columns: see `numbacalib.methods.order.column_orders`. With "desc" alone, groups
        are runs in that order and the result has a `g_idx`; with `static_groups`, or with
        "group_aware", they stay as they are.
    static_groups : bool, default False
        Find all scales from the weights as they come, before any is compensated.

    Returns
    -------
    QuantizedWeight
        With a `GptqReport`.

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

    Examples
    --------
    Inputs that go together let the second 3.4 make up for the first:

    >>> import numpy as np
    >>> from numbacalib.methods import gptq
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> quantized = gptq(weight, hessian, bits=4, group_size=None)
    >>> quantized.codes
    array([[ 0,  3,  4, 15]], dtype=uint8)
    >>> quantized.report.tries, quantized.report.dead
    (1, 0)
    """
    solver = _Solver(percdamp, damping_tries, shrinkage, act_order, static_groups)
    arrays = {"weight": weight, "hessian": hessian, "importance": importance}
    with arrays_of_one_device(**arrays) as (weight, hessian, importance):
        settings = grid_settings(
            weight, bits, group_size, symmetric, scale_dtype, search, importance
        )
        channels = weight.shape[1]
        checks.matrix("hessian", hessian, (channels, channels))
        unchecked = {"hessian": hessian, "weight": weight}
        stack = checks.stack_of_one(hessian)
        return _solve(weight, stack, ["hessian"], unchecked, settings, solver)[0]


def gptq_batch(
    weights: ArrayT,
    hessians: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    search: RangeSearch | None = None,
    importance: ArrayT | None = None,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float = 0.0,
    act_order: str = "none",
    static_groups: bool = False,
) -> list[QuantizedWeight[ArrayT]]:
    """Quantize equal layers, such as a model's experts, each by its own Hessian, as `gptq` does.

    On a GPU every step is one launch for many layers, which together keep it busy where one alone does
    not; as many at a time as `BATCH_BYTES` hold.

    Parameters
    ----------
    weights : array [E, M, K], float16, bfloat16, float32 or float64
    hessians : array [E, K, K]
    bits, group_size, symmetric, scale_dtype, search
        As in `gptq`.
    importance : array [E, K] or [E, M, K], optional
    percdamp, damping_tries, shrinkage, act_order, static_groups
        As in `gptq`.

    Returns
    -------
    list of QuantizedWeight
        One a layer, with a `GptqReport` each.

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `gptq`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import gptq, gptq_batch
    >>> weights = np.linspace(-1, 1, 48, dtype=np.float32).reshape(2, 3, 8)
    >>> hessians = np.stack([np.eye(8, dtype=np.float32)] * 2)
    >>> first, second = gptq_batch(weights, hessians, bits=4, group_size=8)
    >>> second == gptq(weights[1], hessians[1], bits=4, group_size=8)
    True
    """
    solver = _Solver(percdamp, damping_tries, shrinkage, act_order, static_groups)
    arrays = {"weights": weights, "hessians": hessians, "importance": importance}
    with arrays_of_one_device(**arrays) as (weights, hessians, importance):
        count, rows, channels = checks.stack("weights", weights, ("E", "M", "K"))
        checks.stack("hessians", hessians, (count, channels, channels))
        weight, hessian = stacked_rows(weights), stacked_rows(hessians)
        require_finite("weights", weight.reshape(count, rows, channels))
        require_finite("hessians", hessian.reshape(count, channels, channels))
        errors = _importance_of_rows(importance, count, rows, channels)
        grid = bits, group_size, symmetric, scale_dtype, search
        size = max(1, BATCH_BYTES // (4 * channels * channels)) if is_cuda_array(weights) else 1
        found = []
        for first in range(0, count, size):
            last = min(first + size, count)
            run = slice(first * rows, last * rows)
            own = None if errors is None else errors[run]
            settings = grid_settings(weight[run], *grid, own)
            stack = hessian[first * channels : last * channels].reshape(-1, channels, channels)
            names = [f"hessians[{e}]" for e in range(first, last)]
            found += _solve(weight[run], stack, names, {}, settings, solver)
        return found


def _importance_of_rows(importance: Any, count: int, rows: int, channels: int) -> Any:
    """Return weights [E, K] or [E, M, K] of errors as a matrix [E * M, K]; None for None."""
    if importance is None:
        return None
    if importance.shape == (count, channels):
        return take(importance, np.repeat(np.arange(count), rows), 0)
    checks.stack("importance", importance, (count, rows, channels))
    return stacked_rows(importance)


def _solve(
    weight: Any,
    hessians: Any,
    names: list[str],
    unchecked: dict[str, Any],
    settings: GridSettings,
    solver: _Solver,
) -> list[QuantizedWeight]:
    """Quantize E equal runs of rows [E * M, K] by their Hessians [E, K, K]; see `gptq`.

    `names` are what errors call the Hessians, `unchecked` are arrays that may not be finite.
    """
    dtype = checks.result_dtype(weight, hessians)
    permutations = None
    if solver.act_order != "none":
        spread = to_host(diagonals(hessians)).astype(np.float64)
        permutations = column_orders(spread, solver.act_order, settings.group_size)
        hessians = _permuted(hessians, permutations)
    if solver.shrinkage:
        hessians = shrunk(hessians, solver.shrinkage)
    percdamps, tries = [solver.percdamp] * len(hessians), [1] * len(hessians)
    while True:
        factors = factor_hessians(hessians, percdamps, dtype=dtype)
        # a GPU factors meanwhile, and goes on as if all were well, rather than wait to be told
        finite = [start_finite_check(*item) for item in unchecked.items()]
        if not (factors.are_known and any(factors.minors)):
            dead = factors.dead
            if permutations is not None:
                dead = take(dead, np.argsort(permutations, axis=1), 1)
            weights, row_losses, require_finite_scales = _sweep(
                without_columns(weight, dead),
                factors.upper,
                permutations,
                settings,
                solver.static_groups,
            )
        for require_finite_values in finite:
            require_finite_values()
        unchecked = {}
        if not any(factors.minors):
            break
        for e, minor in enumerate(factors.minors):
            grown = max(DAMPING_GROWTH * percdamps[e], LEAST_GROWN_DAMPING)
            if minor and (tries[e] == solver.damping_tries or grown > LARGEST_DAMPING):
                raise factors.error(e, names[e], percdamps[e])
            if minor:
                percdamps[e] = grown
                tries[e] += 1
    require_finite_scales()

    losses = to_host(row_losses).reshape(len(hessians), -1).sum(axis=1)
    damped = percdamps, factors.dampings, tries, factors.smallest_pivots
    spectra = to_host(diagonals(hessians)), to_host(diagonals(factors.upper)), factors.dampings
    ranks = map(effective_rank, *spectra)
    reports = map(GptqReport, losses.tolist(), *damped, factors.dead_counts, ranks)
    return [replace(found, report=own) for found, own in zip(weights, reports, strict=True)]


def effective_rank(diagonal: NDArray, roots: NDArray, damping: float) -> float:
    """How many independent channels would vary as much as the K of a Hessian do together.

    ``K log det(I + H / damping) / sum_j log(1 + H[j, j] / damping)`` over live channels: K where no
    channel says anything of another (Hadamard's inequality), and about the rank where all else is below
    the damping. It costs nothing beside the factor, whose pivots have the determinant. Without damping,
    `ROUNDING` of the mean diagonal is in its place.

    Parameters
    ----------
    diagonal : array [K]
        Of the Hessian before damping.
    roots : array [K]
        Diagonal of the Cholesky factor of the damped Hessian.
    damping : float
        What was added to the diagonal.
    """
    live = diagonal > 0
    if not live.any():
        return 0.0
    spread = diagonal[live].astype(np.float64)
    floor = max(damping, ROUNDING * diagonal.mean(dtype=np.float64))
    left = np.clip(roots[live].astype(np.float64) ** 2 - damping, 0, spread)  # up to rounding
    return float(len(spread) * np.log1p(left / floor).sum() / np.log1p(spread / floor).sum())


def _permuted(hessians: Any, permutations: NDArray[np.int64]) -> Any:
    """Permute the channels of Hessians [E, K, K], each by its row of [E, K]."""
    count, size, _ = hessians.shape
    rows = permutations + size * np.arange(count)[:, None]
    moved = take(stacked_rows(hessians), rows.ravel(), 0)
    return take(moved, permutations, 1).reshape(count, size, size)


def _sweep(
    weight: Any,
    upper: Any,
    permutations: NDArray[np.int64] | None,
    settings: GridSettings,
    static_groups: bool,
) -> tuple[list[QuantizedWeight], Any, Callable[[], None]]:
    """Quantize the columns in the order of the factors, and permute the codes back.

    Also returns the losses of the rows, and what raises if a scale is too large for its dtype.
    """
    count, channels, _ = upper.shape
    groups = np.tile(group_indices(channels, settings.group_size), (count, 1))
    permuted = weight if permutations is None else take(weight, permutations, 1)
    if static_groups:
        scales, zeros = find_scales(weight, settings)
        group_of = groups if permutations is None else np.take_along_axis(groups, permutations, 1)
        found = quantize_direct(permuted, upper, settings.grid, group_of, scales, zeros)
    else:
        importance = settings.importance
        if importance is not None and permutations is not None:
            importance = take(importance, permutations, 1)
        ranges = {"search": settings.search, "importance": importance}
        found = quantize_direct(permuted, upper, settings.grid, groups, **ranges)
    codes, scales, zeros = found.codes, found.scales, found.zeros
    g_idx: list[NDArray[np.int64] | None] = [None] * count
    if permutations is not None:
        natural = np.argsort(permutations, axis=1)
        codes = take(codes, natural, 1)
        if not static_groups:
            group_of = np.take_along_axis(groups, natural, 1)
            first = group_of[:, :: settings.group_size]
            runs = (group_of == np.take_along_axis(first, groups, 1)).all(axis=1)
            # where groups are still runs of channels, their scales go where the channels went
            first = np.where(runs[:, None], first, np.arange(first.shape[1]))
            scales, zeros = take(scales, first, 1), take(zeros, first, 1)
            g_idx = [None if runs[e] else group_of[e] for e in range(count)]
    weights, require_finite_scales = stored_runs(codes, scales, zeros, g_idx, settings)
    return weights, found.losses, require_finite_scales
