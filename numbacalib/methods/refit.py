"""Refit of scales and zeros to the codes that a method chose."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from numbacalib.linalg import solve_rows
from numbacalib.methods.loss import errors_of, require_layer
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.target import damped_factors
from numbacalib.ops.grid import shifted
from numbacalib.ops.matrix import cast, from_host, joined_rows, take, to_host, weighted_sum
from numbacalib.ops.products import group_dots, product
from numbacalib.ops.scale_refit import refitted_scales
from numbacalib.ops.zero_refit import refitted_zeros
from numbacalib.runtime import checks
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.spec.grid import INTEGER
from numbacalib.spec.zero_refit import GroupMoments

ZEROS = "kept", "integers", "biases"
LEAST_SHARE = 1e-6
"""Damping of the Hessian of the groups' offsets: about the rounding of its float32 products."""


def refit_scales(
    weight: ArrayT,
    quantized: QuantizedWeight[ArrayT],
    hessian: ArrayT,
    *,
    zeros: str = "kept",
    least_zero: int = 0,
) -> QuantizedWeight[ArrayT]:
    """Refit each row's scales, and optionally zeros, to lose least with the given codes.

    It takes codes of any method, on either grid, with groups of any kind. A row's scales are solved
    together, rounded to the dtype in which they are stored, and taken only if ``trace(D H D^T)`` then
    falls; so the loss never rises.

    Parameters
    ----------
    weight : array [M, K]
        Weight that the codes should stand for: the layer's, or its `propagated_target`.
    quantized : QuantizedWeight
    hessian : array [K, K]
    zeros : "kept", "integers" or "biases", default "kept"
        Zeros stay; or each group also takes the integer that loses least; or real zeros are solved for
        together with the scales, for formats that store the bias ``-zero * scale`` in the dtype of the
        scales.
    least_zero : int, default 0
        The least integer that a format stores.

    Returns
    -------
    QuantizedWeight
        The same codes, with new scales and zeros in the rows that lose less with them. With "biases"
        zeros are float32.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.
    numpy.linalg.LinAlgError
        If with "biases" the Hessian is not positive semi-definite.

    Notes
    -----
    arXiv 2602.02126 solves for the scale of a channel; with G groups it is a system of G equations a row:
    see `numbacalib.spec.scale_refit`. It costs ``M K^2`` operations, about as much as GPTQ itself. Real
    zeros let each group move by an offset, which is eliminated first: with u a column of ones for each
    group, the scales are solved for with ``H - H u (u^T H u)^-1 u^T H``, and the offsets follow. Integer
    zeros are searched, `numbacalib.spec.zero_refit`, between two such solutions.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import proxy_loss, refit_scales, rtn
    >>> hessian = np.full((4, 4), 0.9, np.float32)
    >>> np.fill_diagonal(hessian, 1)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> quantized = rtn(weight, bits=4, group_size=None)
    >>> refitted = refit_scales(weight, quantized, hessian)
    >>> proxy_loss(weight, refitted, hessian) < 0.1 * proxy_loss(weight, quantized, hessian)
    True
    """
    checks.one_of("zeros", zeros, ZEROS)
    if quantized.element != INTEGER:
        raise ValueError(f"quantized: expected integer codes, got {quantized.element}")
    if quantized.symmetric and zeros != "kept":
        raise ValueError(f"zeros: expected kept on a symmetric grid, got {zeros!r}")
    least_zero = checks.integer("least_zero", least_zero, 0, (1 << quantized.bits) - 1)
    grids = {"codes": quantized.codes, "scales": quantized.scales, "zeros": quantized.zeros}
    with arrays_of_one_device(weight=weight, hessian=hessian, **grids) as (weight, hessian, *own):
        codes, scales, old_zeros = own
        dtype = require_layer(weight, codes, hessian)
        weight, hessian = cast(weight, dtype), cast(hessian, dtype)
        if quantized.g_idx is not None:  # groups become runs of channels
            runs = np.argsort(quantized.g_idx, kind="stable")
            codes, weight = take(codes, runs, 1), take(weight, runs, 1)
            hessian = take(take(hessian, runs, 0), runs, 1)
        if zeros == "integers" and old_zeros.dtype != np.uint8:
            raise TypeError(f"zeros: expected integers to begin with, got {old_zeros.dtype}")
        grid = replace(quantized, codes=codes, scales=scales, zeros=old_zeros, g_idx=None)
        if zeros == "biases":
            found = _with_biases(weight, grid, hessian)
        elif zeros == "integers":
            found = _with_integers(weight, grid, hessian, least_zero)
        else:
            found = _with_scales(weight, grid, hessian)
        # return zeros that stay as the caller's own array, not as the kernels' view of it
        stay = found.zeros is old_zeros
        return replace(
            quantized, scales=found.scales, zeros=quantized.zeros if stay else found.zeros
        )


def _with_scales(weight: Any, quantized: QuantizedWeight, hessian: Any) -> QuantizedWeight:
    """Refit scales alone."""
    grid = quantized.codes, quantized.zeros, quantized.scales
    return replace(
        quantized,
        scales=refitted_scales(*grid, errors_of(weight, quantized), hessian),
    )


@dataclass(frozen=True)
class _Offsets:
    """Moments of the groups' offsets, with u [K, G] 1 where a channel is in a group, else 0."""

    sums: Any
    """``H u``, [K, G]."""
    rows: Any
    """``u^T H``, [G, K]."""
    ones: Any
    """``u^T H u``, [G, G]."""

    @classmethod
    def of(cls, hessian: Any, groups: int) -> _Offsets:
        """Compute the moments for groups that are runs of channels."""
        columns = np.repeat(np.eye(groups, dtype=hessian.dtype), len(hessian) // groups, axis=0)
        sums = product(hessian, from_host(columns, hessian))
        rows = from_host(np.ascontiguousarray(columns.T), hessian)
        return cls(sums, product(rows, hessian), product(rows, sums))


def _with_integers(
    weight: Any, quantized: QuantizedWeight, hessian: Any, least: int
) -> QuantizedWeight:
    """Refit scales, search integer zeros, and refit scales again."""
    offsets = _Offsets.of(hessian, quantized.scales.shape[1])
    grid = quantized.codes, quantized.zeros, quantized.scales
    moments = GroupMoments(hessian, offsets.sums, offsets.ones)
    ends = least, (1 << quantized.bits) - 1
    scales, zeros = refitted_zeros(*grid, errors_of(weight, quantized), moments, ends)
    return replace(quantized, scales=scales, zeros=zeros)


def _with_biases(weight: Any, quantized: QuantizedWeight, hessian: Any) -> QuantizedWeight:
    """Solve for scales and real zeros together, and keep rows that lose less as they are stored."""
    offsets = _Offsets.of(hessian, quantized.scales.shape[1])
    factor = damped_factors(offsets.ones, LEAST_SHARE, 5, weight.dtype).upper[0]
    made_up = product(solve_rows(factor, offsets.sums), offsets.rows)
    solved = _with_scales(weight, quantized, weighted_sum(hessian, made_up, 1.0, -1.0))
    pulls = product(errors_of(weight, solved), offsets.sums)
    moved = to_host(solve_rows(factor, pulls)).astype(np.float64)  # offsets of the values
    scales = to_host(solved.scales).astype(np.float64)
    with np.errstate(over="ignore"):  # a row with an infinite bias does not lose less
        biases = (moved - to_host(quantized.zeros) * scales).astype(solved.scales.dtype)
    stored = biases.astype(np.float32)
    zeros = from_host(-stored / scales.astype(np.float32), hessian)
    old = replace(quantized, zeros=shifted(quantized.zeros, 0, np.float32))
    return _better_rows(weight, old, replace(solved, zeros=zeros), hessian)


def _better_rows(
    weight: Any, old: QuantizedWeight, new: QuantizedWeight, hessian: Any
) -> QuantizedWeight:
    """Take the grids of `new` for rows that lose less with them, and those of `old` for the others."""
    before, after = (_row_losses(weight, each, hessian) for each in (old, new))
    rows = np.arange(len(before))
    taken = np.where(after < before, rows, rows + len(rows))
    pairs = (new.scales, old.scales), (new.zeros, old.zeros)
    scales, zeros = (take(joined_rows(list(pair)), taken, 0) for pair in pairs)
    return replace(old, scales=scales, zeros=zeros)


def _row_losses(weight: Any, quantized: QuantizedWeight, hessian: Any) -> Any:
    errors = errors_of(weight, quantized)
    return to_host(group_dots(product(errors, hessian), errors, errors.shape[1]))[:, 0]
