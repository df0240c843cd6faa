"""Bits and groups of a model's layers under a budget, by losses estimated before a weight is rounded.

GPTQ's loss is ``sum_j D_j e_j^2`` over a row, with ``e_j`` the distance of the compensated weight from its
code's value and ``D_j`` the variance of channel j that later channels do not explain: the squared diagonal
of the Hessian's factor, in the order of the columns. The mean square error of a rounded weight is
``scale^2 / 12``, so that the expected loss is ``sum_j D_j sum_i scale_ij^2 / 12``, before any code is
chosen.

Source: "The Geometry of LLM Quantization", arXiv 2507.18553, whose bound has 4 instead of 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods.layer import LayerSettings
from numbacalib.methods.order import column_orders
from numbacalib.methods.target import damped_factors, smoothed
from numbacalib.ops.grid import grid_scales
from numbacalib.ops.matrix import diagonal, take, to_host
from numbacalib.runtime import checks
from numbacalib.spec.grid import Grid

BITS = tuple(range(2, 9))
REFERENCE_BITS = 4
"""Bits at which scales are found; for other bits they follow from the number of levels."""


class Width(NamedTuple):
    """Bits and group size of a layer, with the size and the loss that they lead to."""

    bits: int
    group_size: int
    size: float
    """Stored bits of the layer."""
    loss: float
    """Expected loss, in one unit for all layers."""


def expected_losses(
    weights: Mapping[str, Any],
    hessian: Any,
    group_sizes: Iterable[int],
    settings: LayerSettings,
) -> dict[str, dict[tuple[int, int], float]]:
    """Expected losses of GPTQ for layers that share one input.

    Parameters
    ----------
    weights : mapping of str to array [M_i, K]
    hessian : array [K, K]
    group_sizes : iterable of int
        Divisors of K.
    settings : LayerSettings
        Of the grid, the damping, the shrinkage, which is a number, and the order of the columns.

    Returns
    -------
    dict of str to dict of (int, int) to float
        By the names of the weights: by bits and group size the squared error of outputs, at the scale of
        `proxy_loss`, for inputs whose Hessian is the one that GPTQ factors, shrunk and damped.
    """
    spreads = _conditional_spreads(hessian, settings)
    found: dict[str, dict[tuple[int, int], float]] = {}
    for name, weight in weights.items():
        found[name] = {}
        for size in group_sizes:
            grid = Grid(REFERENCE_BITS, settings.symmetric)
            scales, _ = grid_scales(weight, size, grid)
            squares = (to_host(scales).astype(np.float64) ** 2).sum(axis=0)
            loss = float((squares * spreads.reshape(-1, size).sum(axis=1)).sum()) / 12
            for bits in BITS:
                finer = (2**REFERENCE_BITS - 1) / (2**bits - 1)
                found[name][bits, size] = loss * finer**2
    return found


def _conditional_spreads(hessian: Any, settings: LayerSettings) -> NDArray[np.float64]:
    """``D_j`` of each channel, in natural order, [K]: of the Hessian as GPTQ factors it."""
    assert settings.shrinkage is not None  # its caller found it
    size = hessian.shape[0]
    spread = to_host(diagonal(hessian))
    stack = checks.stack_of_one(hessian)
    orders = column_orders(stack, settings.act_order, settings.group_size or size)
    order = np.arange(size) if orders is None else to_host(orders.order)[0]
    moved = smoothed(take(take(hessian, order, 0), order, 1), settings.shrinkage)
    dtype = checks.result_dtype(hessian)
    factors = damped_factors(moved, settings.percdamp, settings.damping_tries, dtype)
    spreads = np.empty(size)
    spreads[order] = factors.roots[0] ** 2
    return np.where(spread == 0, 0, spreads)


def chosen_widths(options: Mapping[str, Sequence[Width]], budget: float) -> dict[str, Width]:
    """Choose the widths of layers with the least total loss, of those that take at most `budget` bits.

    Each layer begins with the narrowest width. Steps to wider ones are taken in the order of loss saved per
    bit, as long as there is room, so that no choice of the resulting size would lose less.

    Parameters
    ----------
    options : mapping of str to sequence of Width
        By layer.
    budget : float
        Stored bits of all layers.

    Raises
    ------
    ValueError
        If the narrowest widths take more.
    """
    hulls = {layer: _hull(widths) for layer, widths in options.items()}
    chosen = {layer: hull[0] for layer, hull in hulls.items()}
    left = budget - sum(width.size for width in chosen.values())
    if left < 0:
        raise ValueError(
            f"size: expected room for the narrowest widths, which take {budget - left:.0f} bits, "
            f"got {budget:.0f}"
        )
    steps = [
        ((one.loss - other.loss) / (other.size - one.size), layer, number)
        for layer, hull in hulls.items()
        for number, (one, other) in enumerate(pairwise(hull), 1)
    ]
    full: set[str] = set()
    for _, layer, number in sorted(steps, key=lambda step: (-step[0], step[2])):
        wider = hulls[layer][number]
        cost = wider.size - chosen[layer].size
        if layer in full or cost > left:
            full.add(layer)
            continue
        left -= cost
        chosen[layer] = wider
    return chosen


def _hull(widths: Sequence[Width]) -> list[Width]:
    """Widths of rising size and falling loss, each step saving less loss per bit than the one before."""
    hull: list[Width] = []
    for width in sorted(widths, key=lambda width: (width.size, width.loss)):
        if hull and width.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _saved(hull[-2], hull[-1]) <= _saved(hull[-2], width):
            hull.pop()
        hull.append(width)
    return hull


def _saved(one: Width, other: Width) -> float:
    """Loss saved per bit in a step from one width to a wider one."""
    return (one.loss - other.loss) / (other.size - one.size)
