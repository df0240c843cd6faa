"""AWQ: scales of input channels, and clipping, that lose least in a layer's outputs.

Multiplying the channels that carry large activations by s, and dividing the layer's inputs by s,
leaves the layer's function as it is but makes the grid finer where it matters. The division is folded
into the layer that produces the inputs.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2023).
The published search runs the layer on sampled inputs for each candidate; here the loss comes from
the Hessian, ``trace(D H D^T)``: the same number, from all tokens, at a cost that does not depend on
their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from numbacalib.methods.loss import proxy_loss
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rounding import rounded
from numbacalib.methods.settings import AskedGrid, GridSettings, grid_settings, non_negative
from numbacalib.ops.clip_search import clip_scales
from numbacalib.ops.magnitudes import relative_magnitudes
from numbacalib.ops.matrix import cast, from_host, scaled, to_host
from numbacalib.runtime import checks
from numbacalib.runtime.array import Array, ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite
from numbacalib.spec.grid import INTEGER
from numbacalib.spec.range_search import RangeSearch

LEAST_SCALE = 1e-4
"""Least channel scale before normalization, as published."""


class ChannelScales(NamedTuple):
    """Channel scales that the search found for layers that share an input."""

    scales: Array
    """s, float32 [K], positive: multiply the weights' channels, divide the inputs."""
    exponent: float | None
    """r; None for the identity, ``s = 1``."""
    loss: float
    """``trace(D H D^T)`` summed over the layers, with s."""
    identity_loss: float
    """The same with ``s = 1``: never less."""


def awq_scales(
    weights: Sequence[ArrayT],
    hessian: ArrayT,
    magnitude: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    element: str = INTEGER,
    weight_term: bool = False,
    points: int = 20,
) -> ChannelScales:
    """Search the channel scales of layers that share an input.

    The candidates are the identity and ``s = a**r``, or with the weight term
    ``s = a**r / w**(1 - r)``, for r = 0, 1 / points, ..., each normalized to
    ``max(s) * min(s) = 1``. ``w[j]`` is the mean over all rows of ``|W[i, j]|``, each divided by the
    largest of its group.

    CUDA arrays stay on their device, except vectors [K]: the candidates are computed on the host.

    Parameters
    ----------
    weights : sequence of arrays [M, K]
        M may differ.
    hessian : array [K, K]
        Of the shared input, as `InputStatistics` collects it.
    magnitude : array [K]
        a, not negative: mean |x| as published (`InputStatistics.mean_abs`), max |x|
        (`InputStatistics.max_abs`), or the scores of `numbacalib.awq_channel_scores`.
    bits, group_size, symmetric, scale_dtype, element
        As for `rtn`, which rounds each candidate.
    weight_term : bool, default False
    points : int, default 20
        Exponents to try.

    Returns
    -------
    ChannelScales

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit, or a value is not finite (the first index is named).

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import awq_scales
    >>> from numbacalib.statistics import InputStatistics
    >>> inputs = np.ones((4, 8), np.float32)
    >>> inputs[:, 0] = 16  # a channel with large inputs
    >>> statistics = InputStatistics(8)
    >>> statistics.update(inputs)
    >>> weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    >>> hessian, magnitude = statistics.hessian, statistics.mean_abs
    >>> found = awq_scales([weight], hessian, magnitude, bits=3, group_size=8)
    >>> found.exponent
    0.5
    >>> found.scales
    array([2. , 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5], dtype=float32)
    >>> found.loss < 0.1 * found.identity_loss
    True
    """
    if not isinstance(weights, Sequence):
        raise TypeError(f"weights: expected a sequence of arrays, got {type(weights).__name__}")
    if not weights:
        raise ValueError("weights: expected at least one")
    weight_term = checks.boolean("weight_term", weight_term)
    points = checks.integer("points", points, 1, 1 << 20)
    named = {f"weights[{i}]": weight for i, weight in enumerate(weights)}
    arrays = {"hessian": hessian, "magnitude": magnitude, **named}
    with arrays_of_one_device(**arrays) as (hessian, magnitude, *weights):
        _, channels = checks.matrix("weights[0]", weights[0], ("M", "K"))
        for name, weight in zip(named, weights, strict=True):
            checks.matrix(name, weight, ("M", channels))
            require_finite(name, weight)
        asked = AskedGrid(bits, group_size, symmetric, scale_dtype, element)
        settings = [grid_settings(weight, asked) for weight in weights]
        _check_hessian(hessian, channels)
        (a,) = to_host(cast(non_negative("magnitude", magnitude, [(channels,)]), np.float64))

        w = _relative_magnitude(weights, settings[0].group_size) if weight_term else None
        identity = from_host(np.ones(channels, np.float32), hessian)
        identity_loss = _loss(weights, settings, hessian, identity)
        best = ChannelScales(identity, None, identity_loss, identity_loss)
        # without the weight term r = 0 is the identity
        for r in np.arange(0 if weight_term else 1, points) / points:
            scales = from_host(_candidate(a, w, float(r)), hessian)
            loss = _loss(weights, settings, hessian, scales)
            if loss < best.loss:
                best = ChannelScales(scales, float(r), loss, identity_loss)
        return best


def awq_clip(
    weight: ArrayT,
    hessian: ArrayT,
    *,
    bits: int,
    group_size: int | None = 128,
    symmetric: bool = False,
    scale_dtype: DTypeLike = np.float16,
    element: str = INTEGER,
    points: int = 20,
    least: float = 0.5,
) -> QuantizedWeight[ArrayT]:
    """Quantize a weight by rounding to nearest, with each group clipped to lose least in its own output.

    Group by group the largest magnitude that the grid spans shrinks in steps of ``1 / points``, as
    long as more than `least` of it is left, and the one with the least ``d H_gg d^T`` is kept, with d
    the errors of the group and ``H_gg`` its block of the Hessian.

    Parameters
    ----------
    weight : array [M, K]
        Multiplied by its channel scales, if any.
    hessian : array [K, K]
        Of the inputs of this weight, divided by the channel scales.
    bits, group_size, symmetric, scale_dtype, element
        As for `rtn`.
    points : int, default 20
    least : float, default 0.5

    Returns
    -------
    QuantizedWeight

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import awq_clip, proxy_loss, rtn
    >>> from numbacalib.statistics import InputStatistics
    >>> inputs = np.ones((4, 8), np.float32)
    >>> inputs[:, 0] = 16  # a channel with large inputs
    >>> statistics = InputStatistics(8)
    >>> statistics.update(inputs)
    >>> weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    >>> clipped = awq_clip(weight, statistics.hessian, bits=3, group_size=8)
    >>> nearest = rtn(weight, bits=3, group_size=8)
    >>> loss = proxy_loss(weight, clipped, statistics.hessian)
    >>> loss < 0.1 * proxy_loss(weight, nearest, statistics.hessian)
    True
    """
    with arrays_of_one_device(weight=weight, hessian=hessian) as (weight, hessian):
        asked = AskedGrid(bits, group_size, symmetric, scale_dtype, element)
        settings = grid_settings(weight, asked)
        require_finite("weight", weight)
        _check_hessian(hessian, weight.shape[1])
        points = checks.integer("points", points, 1, 1 << 20)
        if not 0 <= checks.finite_number("least", least) < 1:
            raise ValueError(f"least: expected 0 to below 1, got {least}")
        shares = RangeSearch(points, least).shares(checks.result_dtype(weight))
        found = clip_scales(weight, hessian, settings.group_size, settings.grid, shares)
        return rounded(weight, settings, *found)


def _check_hessian(hessian: Any, channels: int) -> None:
    checks.matrix("hessian", hessian, (channels, channels))
    require_finite("hessian", hessian)


def _loss(
    weights: Sequence[Any], settings: Sequence[GridSettings], hessian: Any, scales: Any
) -> float:
    """``trace(D H D^T)`` summed over layers that are rounded with channel scales."""
    total = 0.0
    for weight, setting in zip(weights, settings, strict=True):
        multiplied = scaled(weight, scales)
        total += proxy_loss(multiplied, rounded(multiplied, setting), hessian, scales)
    return total


def _relative_magnitude(weights: Sequence[Any], group_size: int) -> NDArray:
    """``mean_i |W[i, j]| / max(|W[i, group of j]|)`` over the rows of all weights, [K]."""
    sums = [to_host(relative_magnitudes(weight, group_size)) for weight in weights]
    return np.sum(sums, axis=0) / sum(len(weight) for weight in weights)


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
