"""GPTQ's solver, from weights to codes, for layers that share a Hessian or have one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.linalg import HessianFactors, factor_hessians
from numbacalib.methods.gptq_report import GptqReport
from numbacalib.methods.order import ACT_ORDERS, column_orders
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rounding import find_scales, stored_runs
from numbacalib.methods.settings import GridSettings
from numbacalib.ops.falling_order import ColumnOrders
from numbacalib.ops.gptq_quantize_column import quantize_direct
from numbacalib.ops.matrix import live_columns, start_to_host, take, to_host
from numbacalib.ops.shrinkage import shrunk
from numbacalib.runtime import checks
from numbacalib.runtime.backend import is_cuda_array
from numbacalib.runtime.finite import start_finite_check
from numbacalib.spec.gptq import ColumnGrids
from numbacalib.spec.grid import group_indices

DAMPING_GROWTH = 4.0
"""Factor by which damping grows after a factorisation that failed."""
LEAST_GROWN_DAMPING = 0.01
"""Least damping after it has grown, also from 0."""
LARGEST_DAMPING = 1e6
"""Largest damping, set or grown: with more, the Hessian is lost in float32's rounding."""
ROUNDING = 1e-6
"""Rounding of a Hessian's float32 products, as a share of the mean diagonal."""


@dataclass(frozen=True)
class Solver:
    """Preparation of the Hessians and order of the columns; see `gptq`."""

    percdamp: float
    damping_tries: int
    shrinkage: float | Sequence[float]
    """One for all Hessians, or one for each."""
    act_order: str
    static_groups: bool

    def __post_init__(self) -> None:
        """Check each setting before any work."""
        if not 0 <= checks.finite_number("percdamp", self.percdamp) <= LARGEST_DAMPING:
            raise ValueError(f"percdamp: expected 0 to {LARGEST_DAMPING:g}, got {self.percdamp}")
        checks.boolean("static_groups", self.static_groups)
        checks.integer("damping_tries", self.damping_tries, 1, 100)
        given = self.shrinkage
        for share in given if isinstance(given, Sequence) else [given]:
            if not 0 <= checks.finite_number("shrinkage", share) <= 1:
                raise ValueError(f"shrinkage: expected 0 to 1, got {share}")
        checks.one_of("act_order", self.act_order, ACT_ORDERS)

    def shares(self, count: int) -> list[float]:
        """Shrinkage of each of `count` Hessians."""
        if not isinstance(self.shrinkage, Sequence):
            return [self.shrinkage] * count
        if len(self.shrinkage) != count:
            given = len(self.shrinkage)
            raise ValueError(f"shrinkage: expected a number or {count} of them, got {given}")
        return list(self.shrinkage)


@dataclass(frozen=True)
class Layers:
    """Layers to quantize together, their weights stacked by rows."""

    weight: Any
    """[sum of the rows, K]: equal runs of rows for each Hessian."""
    hessians: Any
    """[E, K, K]."""
    rows: Sequence[int]
    """Rows of each layer: one layer for each Hessian, or several that share a single one."""
    names: Sequence[str]
    """Names of the Hessians in errors."""
    unchecked: Mapping[str, Any] = field(default_factory=dict)
    """Arrays that may hold values that are not finite, by their names in errors."""


def solve(
    layers: Layers,
    settings: GridSettings,
    solver: Solver,
    later: Sequence[Callable[[], None]] | None = None,
) -> list[QuantizedWeight]:
    """Quantize layers, see `numbacalib.methods.gptq`; each result has its report.

    With checks for `later`, the call does not wait for a device: results have these checks and their own,
    and no report.
    """
    weight, hessians, unchecked = layers.weight, layers.hessians, layers.unchecked
    if not is_cuda_array(weight):
        start_finite_check(unchecked)()
        unchecked = {}  # a GPU's checks are launched behind the sweep, for which it waits
    dtype = checks.result_dtype(weight, hessians)
    orders = None
    if solver.act_order != "none":
        orders = column_orders(hessians, solver.act_order, settings.group_size)
    order = None if orders is None else orders.order
    shares = solver.shares(len(hessians))
    if any(shares):
        hessians = shrunk(hessians, shares)
    percdamps, tries = [solver.percdamp] * len(hessians), [1] * len(hessians)
    while True:
        factors = factor_hessians(hessians, percdamps, dtype=dtype, orders=order)
        # a GPU is still factoring: the sweep is launched without waiting to know that it succeeds
        if not (factors.are_known and any(factors.minors)):
            weights, row_losses, require_finite_scales = sweep(
                live_columns(weight, factors.dead, order),
                factors.upper,
                orders,
                settings,
                solver.static_groups,
                layers.rows,
            )
        require_finite_values = start_finite_check(unchecked)
        if later is not None:
            factored = partial(_require_factors, factors, layers.names, percdamps)
            checks_of_run: list[Callable[[], None]] = [*later, require_finite_values, factored]
            checks_of_run.append(require_finite_scales)
            return [replace(found, checks=checks_of_run) for found in weights]
        if not any(factors.minors):
            break
        require_finite_values()
        unchecked = {}
        _grow(percdamps, tries, solver.damping_tries, factors, layers.names)
    losses_of_rows = start_to_host(row_losses)
    damped = percdamps, factors.dampings, tries, factors.smallest_pivots
    # a GPU has the factors long before the codes: compute what depends on them alone meanwhile
    known = zip(factors.diagonals, factors.roots, factors.dampings, shares, strict=True)
    with np.errstate(invalid="ignore"):  # infinite values, which are still being looked for
        ranks = [effective_rank(*each) for each in known]
    figures = list(zip(*damped, factors.dead_counts, ranks, strict=True))
    ends = accumulate(layers.rows)
    runs = [slice(end - rows, end) for end, rows in zip(ends, layers.rows, strict=True)]
    require_finite_values()
    require_finite_scales()
    losses = losses_of_rows()
    return [
        replace(found, report=GptqReport(float(losses[run].sum()), *figures[i % len(figures)]))
        for i, (found, run) in enumerate(zip(weights, runs, strict=True))
    ]


def _grow(
    percdamps: list[float],
    tries: list[int],
    most_tries: int,
    factors: HessianFactors,
    names: Sequence[str],
) -> None:
    """Raise the damping of the matrices that have no factor, or an error if that may not grow further."""
    for e, minor in enumerate(factors.minors):
        grown = max(DAMPING_GROWTH * percdamps[e], LEAST_GROWN_DAMPING)
        if minor and (tries[e] == most_tries or grown > LARGEST_DAMPING):
            raise factors.error(e, names[e], percdamps[e])
        if minor:
            percdamps[e] = grown
            tries[e] += 1


def _require_factors(
    factors: HessianFactors, names: Sequence[str], percdamps: Sequence[float]
) -> None:
    """Wait for the factors, and raise an error for the first matrix that has none."""
    for e, minor in enumerate(factors.minors):
        if minor:
            raise factors.error(e, names[e], percdamps[e])


def effective_rank(
    diagonal: NDArray, roots: NDArray, damping: float, shrinkage: float = 0.0
) -> float:
    """Return the number of independent channels that would vary as much as the K of a Hessian together.

    ``K log det(I + H / floor) / sum_j log(1 + H[j, j] / floor)`` over live channels, where the floor is the
    damping: K if channels are uncorrelated (Hadamard's inequality), and about the rank if all else is below
    the floor. The factor's pivots give the determinant at no further cost. Without damping, the floor is
    `ROUNDING` of the mean diagonal. For a shrunk Hessian, the part that is left of H is compared, and the
    part that was added belongs to each channel's floor.

    Parameters
    ----------
    diagonal : array [K]
        Of the Hessian before damping.
    roots : array [K]
        Diagonal of the Cholesky factor of the damped Hessian.
    damping : float
        Number that was added to the diagonal.
    shrinkage : float, default 0
        Share by which the factored Hessian had been moved toward its diagonal.
    """
    live = diagonal > 0
    if not live.any():
        return 0.0
    spread = diagonal[live].astype(np.float64)
    if shrinkage == 1:
        return float(len(spread))
    added = damping + shrinkage * spread
    floor = np.maximum(added, ROUNDING * diagonal.mean(dtype=np.float64))
    most = (1 - shrinkage) * spread
    left = np.clip(roots[live].astype(np.float64) ** 2 - added, 0, most)  # up to rounding
    return float(len(spread) * np.log1p(left / floor).sum() / np.log1p(most / floor).sum())


def sweep(
    live: tuple[Any, Any],
    upper: Any,
    orders: ColumnOrders | None,
    settings: GridSettings,
    static_groups: bool,
    rows: Sequence[int],
) -> tuple[list[QuantizedWeight], Any, Callable[[], None]]:
    """Quantize the columns in the order of the factors, and permute the codes back.

    `live` is the weight as `live_columns` returns it. Also returns the losses of the rows, and a function
    that raises if a scale is too large for its dtype.
    """
    weight, permuted = live
    count, channels, _ = upper.shape
    groups = np.tile(group_indices(channels, settings.group_size), (count, 1))
    static_groups = static_groups or settings.fixed is not None
    if static_groups:
        scales, zeros = find_scales(weight, settings)
        group_of = groups if orders is None else orders.group
        grids = ColumnGrids(settings.grid, group_of, scales, zeros)
    else:
        importance = settings.importance
        if importance is not None and orders is not None:
            importance = take(importance, orders.order, 1)
        ranges = {"search": settings.search, "importance": importance}
        grids = ColumnGrids(settings.grid, groups, **ranges)
    found = quantize_direct(permuted, upper, grids)
    codes, scales, zeros = found.codes, found.scales, found.zeros
    g_idx: list[NDArray[np.int64] | None] = [None] * count
    if orders is not None:
        codes = take(codes, orders.place, 1)
        if not static_groups:
            group_of = np.take_along_axis(groups, to_host(orders.place), 1)
            first = group_of[:, :: settings.group_size]
            runs = (group_of == np.take_along_axis(first, groups, 1)).all(axis=1)
            # if groups are still runs of channels, their scales move with the channels
            first = np.where(runs[:, None], first, np.arange(first.shape[1]))
            scales, zeros = take(scales, first, 1), take(zeros, first, 1)
            g_idx = [None if runs[e] else group_of[e] for e in range(count)]
    each = [g_idx[i % count] for i in range(len(rows))]
    weights, require_finite_scales = stored_runs(codes, scales, zeros, rows, each, settings)
    return weights, found.losses, require_finite_scales
