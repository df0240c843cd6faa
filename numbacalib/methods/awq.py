"""AWQ: scales of input channels, and clipping, that lose least in a layer's outputs.

Multiplying the channels that carry large activations by s, and dividing the layer's inputs by s,
leaves the layer as it is but makes the grid finer where it matters. The division is folded into
whatever produces the inputs.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023).
The published search runs the layer on sampled inputs for each candidate; here the loss comes from
the Hessian, ``trace(D H D^T)``: the same number, from all tokens, at a cost that does not depend on
how many there were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.methods.loss import proxy_loss
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.settings import GridSettings, grid_settings, non_negative
from numbacalib.ops.grid import grid_scales
from numbacalib.runtime import checks
from numbacalib.runtime.finite import require_finite

LEAST_SCALE = 1e-4
"""Least channel scale before normalization, as published."""


class ChannelScales(NamedTuple):
    """What the search found for layers that share an input."""

    scales: NDArray
    """s, float32 [K], positive: multiply the weights' channels, divide the inputs."""
    exponent: float | None
    """r; None for the identity, ``s = 1``."""
    loss: float
    """``trace(D H D^T)`` summed over the layers, with s."""
    identity_loss: float
    """The same with ``s = 1``: never less."""


def awq_scales(
    weights: Sequence[NDArray],
    hessian: NDArray,
    magnitude: NDArray,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    weight_term: bool = False,
    points: int = 20,
) -> ChannelScales:
    """Search the channel scales of layers that share an input.

    The candidates are the identity and ``s = a**r``, or with the weight term
    ``s = a**r / w**(1 - r)``, for r = 0, 1 / points, ..., each normalized to
    ``max(s) * min(s) = 1``. ``w[j]`` is the mean over all rows of ``|W[i, j]|``, each over the
    largest of its group.

    Parameters
    ----------
    weights : sequence of arrays [M, K]
        M may differ.
    hessian : array [K, K]
        Of the shared input, as `InputStatistics` collects it.
    magnitude : array [K]
        a, not negative: mean |x| as published (`InputStatistics.mean_abs`), max |x|
        (`InputStatistics.max_abs`), or what `numbacalib.awq_channel_scores` returns.
    bits, group_size, symmetric, scale_dtype
        As for `rtn`, by which each candidate is judged.
    weight_term : bool, default False
    points : int, default 20
        Exponents to try.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, or a value is not finite (the first index is named).
    """
    if not weights:
        raise ValueError("weights: expected at least one")
    channels = weights[0].shape[-1]
    settings = [grid_settings(w, bits, group_size, symmetric, scale_dtype) for w in weights]
    for weight in weights:
        checks.matrix("weights", weight, ("M", channels))
    checks.matrix("hessian", hessian, (channels, channels))
    require_finite("hessian", hessian)
    points = checks.integer("points", points, 1, 1 << 20)
    a = non_negative("magnitude", magnitude, [(channels,)])

    w = _normalized_magnitude(weights, settings[0].group_size) if weight_term else None
    identity = np.ones(channels, np.float32)
    identity_loss = _loss(weights, settings, hessian, identity)
    best = ChannelScales(identity, None, identity_loss, identity_loss)
    # without the weight term r = 0 is the identity
    for r in np.arange(0 if weight_term else 1, points) / points:
        scales = _candidate(a, w, float(r))
        loss = _loss(weights, settings, hessian, scales)
        if loss < best.loss:
            best = ChannelScales(scales, float(r), loss, identity_loss)
    return best


def awq_clip(
    weight: NDArray,
    hessian: NDArray,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    points: int = 20,
    least: float = 0.5,
) -> QuantizedWeight:
    """Quantize a weight by rounding to nearest, each group clipped where its own output gains.

    Group by group the largest magnitude that the grid spans shrinks in steps of ``1 / points``, as
    long as more than `least` of it is left, and the one with the least ``d H_gg d^T`` is kept, with d
    the errors of the group and ``H_gg`` its block of the Hessian.

    Parameters
    ----------
    weight : array [M, K]
        Multiplied by its channel scales, if any.
    hessian : array [K, K]
        Of the inputs that this weight meets, divided by the channel scales.
    bits, group_size, symmetric, scale_dtype
        As for `rtn`.
    points : int, default 20
    least : float, default 0.5
    """
    settings = grid_settings(weight, bits, group_size, symmetric, scale_dtype)
    rows, channels = weight.shape
    checks.matrix("hessian", hessian, (channels, channels))
    require_finite("hessian", hessian)
    points = checks.integer("points", points, 1, 1 << 20)
    if not 0 <= checks.finite_number("least", least) < 1:
        raise ValueError(f"least: expected 0 to below 1, got {least}")
    size = settings.group_size
    groups = channels // size
    grouped = weight.astype(checks.result_dtype(weight), copy=False).reshape(rows, groups, size)
    largest = np.abs(grouped).max(axis=2, keepdims=True)
    corner = size * np.arange(groups)[:, None] + np.arange(size)
    blocks = hessian[corner[:, :, None], corner[:, None, :]].astype(grouped.dtype, copy=False)

    scales = np.empty((rows, groups), grouped.dtype)
    zeros = np.empty_like(scales)
    least_errors = np.full((rows, groups), np.inf)
    for i in range(max(1, round((1 - least) * points))):
        limit = largest * grouped.dtype.type(1 - i / points)
        clipped = np.clip(grouped, -limit, limit).reshape(rows, channels)
        found = grid_scales(clipped, size, settings.grid)
        values = settings.rounded(weight, *found).dequantize().reshape(grouped.shape)
        difference = (values - grouped).swapaxes(0, 1)
        errors = np.einsum("gij,gij->ig", difference @ blocks, difference)
        better = errors < least_errors
        for kept, new in zip((least_errors, scales, zeros), (errors, *found), strict=True):
            kept[better] = new[better]
    return settings.rounded(weight, scales, zeros)


def _loss(
    weights: Sequence[NDArray], settings: Sequence[GridSettings], hessian: NDArray, scales: NDArray
) -> float:
    """``trace(D H D^T)`` summed over layers that are rounded with channel scales."""
    total = 0.0
    for weight, setting in zip(weights, settings, strict=True):
        scaled = weight * scales.astype(checks.result_dtype(weight))
        total += proxy_loss(scaled, setting.rounded(scaled), hessian, scales)
    return total


def _normalized_magnitude(weights: Sequence[NDArray], group_size: int) -> NDArray:
    """``mean_i |W[i, j]| / max(|W[i, group of j]|)`` over the rows of all weights, [K]."""
    total = np.zeros(weights[0].shape[1])
    for weight in weights:
        magnitude = np.abs(weight.astype(checks.result_dtype(weight), copy=False))
        groups = magnitude.reshape(len(weight), -1, group_size)
        largest = groups.max(axis=2, keepdims=True)
        total += (groups / np.where(largest > 0, largest, 1)).sum(axis=0, dtype=np.float64).ravel()
    return total / sum(len(weight) for weight in weights)


def _candidate(a: NDArray, w: NDArray | None, r: float) -> NDArray:
    """``a**r`` or ``a**r / w**(1 - r)``, normalized; 1 for channels without input or weights."""
    live = a > 0 if w is None else (a > 0) & (w > 0)
    scales = np.ones(len(a), np.float32)
    if live.any():
        raw = a[live].astype(np.float64) ** r
        if w is not None:
            raw /= w[live] ** (1 - r)
        raw = np.maximum(raw, LEAST_SCALE)
        scales[live] = raw / np.sqrt(raw.max() * raw.min())
    return scales
