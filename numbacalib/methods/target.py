"""Targets of a layer's codes when the layers before it are already quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from numbacalib.linalg import HessianFactors, factor_hessians, solve_rows
from numbacalib.methods.loss import start_proxy_loss
from numbacalib.methods.quantized_weight import StoredWeight
from numbacalib.methods.solver import DAMPING_GROWTH, LEAST_GROWN_DAMPING
from numbacalib.ops.matrix import cast, joined_rows, split_rows, weighted_sum
from numbacalib.ops.products import product
from numbacalib.ops.proxy_loss import start_trace_of_products
from numbacalib.ops.shrinkage import shrunk
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array, ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import start_finite_check
from numbacalib.statistics import InputStatistics


def propagated_target(
    weight: ArrayT,
    hessian: ArrayT,
    cross: ArrayT,
    residual: ArrayT | None = None,
    *,
    strength: float = 1.0,
    percdamp: float = 0.01,
    damping_tries: int = 5,
    shrinkage: float = 0.0,
) -> ArrayT:
    """Weight W* that makes up, as far as this layer can, for the errors of the quantized layers before it.

    With the original inputs x and the present ones xh, ``|W x - Q xh|^2`` summed over the tokens is
    ``trace((Q - W*) H (Q - W*)^T)`` plus a term without Q, with ``W* = W + W (C - H) H^-1``. So any
    method that takes a weight and a Hessian quantizes W* as it would W.

    Parameters
    ----------
    weight : array [M, K], float16, bfloat16, float32 or float64
    hessian : array [K, K]
        H, of the present inputs.
    cross : array [K, K]
        C, ``x xh^T`` at the Hessian's scale: `InputStatistics.cross`.
    residual : array [M, K], optional
        ``(r - rh) xh^T`` at the same scale, for a layer that adds its outputs to a stream r, whose errors
        are then compensated too (`InputStatistics.residual`).
    strength : float, default 1
        Share of the way from W to W*, 0 to 1. With 1 the calibration text fits best, and others less.
    percdamp : float, default 0.01
        Damping of H, as a fraction of the mean of its diagonal.
    damping_tries : int, default 5
        As in `gptq`.
    shrinkage : float, default 0
        Share, 0 to 1, by which the H that is inverted moves toward its diagonal first.

    Returns
    -------
    array [M, K], float32 (float64 if the weight or the Hessian is)

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, a value is not finite (the first index is named), or the arrays are
        on different devices.
    numpy.linalg.LinAlgError
        If the damped Hessian is not positive definite after all tries.

    Notes
    -----
    Arai and Ichikawa, "Quantization Error Propagation" (NeurIPS 2025), whose strength this is; "Qronos"
    (arXiv 2505.11695) damps C and H alike, as here; the residual term is of "WaterSIC"
    (arXiv 2603.04956).

    Examples
    --------
    If the layers before halved the inputs, the weights have to double:

    >>> import numpy as np
    >>> from numbacalib.methods import propagated_target
    >>> weight, hessian = np.array([[1.0, 2.0]]), np.diag([1.0, 4.0])
    >>> propagated_target(weight, hessian, cross=2 * hessian, percdamp=0)
    array([[2., 4.]])
    """
    smoothing = percdamp, damping_tries, shrinkage
    (target,) = propagated_targets(
        {"weight": weight}, hessian, cross, residual, strength, *smoothing
    )
    return target


def propagated_targets(
    weights: Mapping[str, Any],
    hessian: Any,
    cross: Any,
    residual: Any,
    strength: float,
    percdamp: float,
    damping_tries: int,
    shrinkage: float = 0.0,
) -> list[Any]:
    """Return the `propagated_target` of each of several weights that share an input, named in errors.

    The Hessian is factored once, and the rows of all weights are solved for together.
    """
    others = {"hessian": hessian, "cross": cross, "residual": residual}
    with arrays_of_one_device(**others, **weights) as (hessian, cross, residual, *matrices):
        given = dict(zip(weights, matrices, strict=True))
        rows, (channels, *_) = zip(
            *(checks.matrix(name, matrix, ("M", "K")) for name, matrix in given.items()),
            strict=True,
        )
        given |= {"hessian": hessian, "cross": cross}
        for name in ("hessian", "cross"):
            checks.matrix(name, given[name], (channels, channels))
        if residual is not None:
            for count in rows:
                checks.matrix("residual", residual, (count, channels))
            given["residual"] = residual
        checks.share("strength", strength)
        checks.share("shrinkage", shrinkage)
        start_finite_check(given)()
        dtype = checks.result_dtype(hessian, *matrices)
        joined = joined_rows([cast(matrix, dtype) for matrix in matrices])
        if residual is not None:
            residual = joined_rows([residual] * len(rows))
        drift = weighted_sum(cross, hessian, 1.0, -1.0, dtype)
        smooth = smoothed(hessian, shrinkage)
        upper = damped_factors(smooth, percdamp, damping_tries, dtype).upper[0]
        missing = _missing(joined, drift, residual, upper)
        found = weighted_sum(joined, missing, 1.0, strength)
        return [target for (target,) in split_rows([found], rows)]


def _missing(weight: Any, drift: Any, residual: Any, upper: Any) -> Any:
    """``(W (C - H) + E) H^-1``, by the order of products with fewer right-hand sides."""
    if residual is None and len(weight) > len(drift):
        return product(weight, solve_rows(upper, drift))
    missing = product(weight, drift)
    if residual is not None:
        missing = weighted_sum(missing, residual, 1.0, 1.0)
    return solve_rows(upper, missing)


def smoothed(hessian: Any, shrinkage: float) -> Any:
    """Return the Hessian moved toward its diagonal by a share; unchanged for 0."""
    if not shrinkage:
        return hessian
    return shrunk(checks.stack_of_one(hessian), shrinkage).reshape(hessian.shape)


def damped_factors(hessian: Any, percdamp: float, tries: int, dtype: np.dtype) -> HessianFactors:
    """Factor one damped Hessian; damping grows after each failure."""
    stack = checks.stack_of_one(hessian)
    for _ in range(checks.integer("damping_tries", tries, 1, 100)):
        factors = factor_hessians(stack, [percdamp], dtype=dtype)
        if not factors.minors[0]:
            return factors
        failed, percdamp = percdamp, max(DAMPING_GROWTH * percdamp, LEAST_GROWN_DAMPING)
    raise factors.error(0, "hessian", failed)


def output_loss(weight: Array, quantized: StoredWeight, statistics: InputStatistics) -> float:
    """Squared error of a layer's outputs, at the Hessian's scale.

    It is ``sum |W x - Q xh|^2``, against the original layer on its original inputs, if the statistics
    have those; otherwise ``sum |W xh - Q xh|^2``, the `proxy_loss`.

    Parameters
    ----------
    weight : array [M, K]
    quantized : QuantizedWeight or CodebookWeight
    statistics : InputStatistics
        Of the present inputs, and of the original ones if it has them.

    Returns
    -------
    float

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import output_loss, rtn
    >>> from numbacalib.statistics import InputStatistics
    >>> inputs = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.float32)
    >>> statistics = InputStatistics(4)
    >>> statistics.update(inputs)
    >>> weight = np.array([[0, 3.4, 3.4, 15]], np.float32)
    >>> quantized = rtn(weight, bits=4, group_size=None)
    >>> errors = inputs @ (weight - quantized.dequantize()).T
    >>> bool(np.isclose(output_loss(weight, quantized, statistics), 2 / len(inputs) * (errors**2).sum()))
    True
    """
    (loss,) = start_output_losses(weight, [quantized], statistics)()
    return loss


def start_output_losses(
    weight: Array, candidates: Sequence[StoredWeight], statistics: InputStatistics
) -> Callable[[], list[float]]:
    """Start measuring the `output_loss` of quantized forms; return a function that waits for a GPU."""
    losses = [start_proxy_loss(weight, each, statistics.hessian) for each in candidates]
    if statistics.cross is None:
        return lambda: [loss() for loss in losses]
    wide = cast(weight, np.float32)
    drift = weighted_sum(statistics.cross, statistics.hessian, 1.0, -1.0)
    spoilt = start_trace_of_products(wide, statistics.drift, wide)
    mixed = []
    for each in candidates:
        errors = weighted_sum(wide, each.dequantize(), 1.0, -1.0)
        mixed.append(start_trace_of_products(wide, drift, errors))
    return lambda: [own() + 2 * both() + spoilt() for own, both in zip(losses, mixed, strict=True)]
