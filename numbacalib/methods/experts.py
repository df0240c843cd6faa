"""Quantization of experts: equal layers together, and those that saw few tokens by a remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from numbacalib.methods.codebook import CodebookWeight
from numbacalib.methods.equal_layers import quantize_each
from numbacalib.methods.layer import LEAST_RANK, LayerReport, LayerSettings
from numbacalib.methods.layer_options import grid_options
from numbacalib.methods.layers import quantize_layer
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rtn import rtn
from numbacalib.methods.target import output_loss
from numbacalib.runtime.array import ArrayT
from numbacalib.statistics import InputStatistics

Result = tuple[QuantizedWeight | CodebookWeight, LayerReport]


class ExpertInputs(NamedTuple):
    """Statistics of the inputs of one expert's layer.

    The functions are called only for experts with too few tokens, or too few directions of them.
    """

    own: InputStatistics
    """Statistics of the tokens that were routed to it, possibly none."""
    halves: Callable[[], tuple[InputStatistics, InputStatistics]]
    """Statistics of two halves of these tokens."""
    pooled: Callable[[], InputStatistics]
    """Statistics of all tokens of the layer, as if they were routed to it."""


def quantize_experts(
    weights: Mapping[str, ArrayT], inputs: Sequence[ExpertInputs], settings: LayerSettings
) -> list[Result]:
    """Quantize one layer of each of several experts, together, from the tokens routed to each.

    An expert that no token reached, or whose tokens vary in too few directions (`LayerReport.low_rank`, or
    fewer tokens than such directions), gets a remedy: it is solved from its own tokens with
    `shrinkage_for`, or from all tokens of the layer, whichever loses less on its own tokens. Each half of
    these measures the weight that the other half's shrunk Hessian gives. With fewer than two tokens, all
    tokens of the layer are used. The report's `remedy` is "shrinkage" or "pooled", its tokens are the
    expert's own, and its losses are on these, or on all if there are none.

    Parameters
    ----------
    weights : mapping of str to array [M, K]
        By the layers' names.
    inputs : sequence of ExpertInputs
    settings : LayerSettings

    Returns
    -------
    list of (QuantizedWeight or CodebookWeight, LayerReport)
        In the order of the weights.

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `quantize_layer`.

    Examples
    --------
    An expert that saw no token is quantized with the inputs of all:

    >>> import numpy as np
    >>> from numbacalib.methods import ExpertInputs, LayerSettings, quantize_experts
    >>> from numbacalib.statistics import InputStatistics
    >>> tokens = np.random.default_rng(0).standard_normal((32, 8), np.float32)
    >>> def seen(rows):
    ...     statistics = InputStatistics(8)
    ...     if len(rows):
    ...         statistics.update(rows)
    ...     return statistics
    >>> def inputs_of(own):
    ...     halves = np.array_split(own, 2)
    ...     return ExpertInputs(seen(own), lambda: tuple(map(seen, halves)), lambda: seen(tokens))
    >>> weights = {f"experts.{e}": tokens[e : e + 3] for e in range(2)}
    >>> inputs = [inputs_of(tokens), inputs_of(tokens[:0])]
    >>> settings = LayerSettings(bits=4, group_size=8)
    >>> [report.remedy for _, report in quantize_experts(weights, inputs, settings)]
    [None, 'pooled']
    """
    given = dict(zip(weights, inputs, strict=True))
    if not settings.calibrated():
        return quantize_each(weights, [None] * len(given), settings)
    seen = [name for name, expert in given.items() if expert.own.tokens]
    statistics = [given[name].own for name in seen]
    own_weights = {name: weights[name] for name in seen}
    found = dict(zip(seen, quantize_each(own_weights, statistics, settings), strict=True))
    for name, expert in given.items():
        if name not in found or _says_too_little(found[name][1]):
            found[name] = _with_remedy(name, weights[name], expert, settings)
    return [found[name] for name in weights]


def _says_too_little(report: LayerReport) -> bool:
    """Return whether a layer has too few tokens, or tokens that span too few directions."""
    live = report.shape[1] - (report.dead or 0)
    few = report.tokens is not None and report.tokens < LEAST_RANK * live
    return report.effective_rank is not None and (few or report.low_rank)


def _with_remedy(name: str, weight: Any, inputs: ExpertInputs, settings: LayerSettings) -> Result:
    """Quantize an expert by whichever remedy loses less on its own tokens."""
    own, shrinking = inputs.own, replace(settings, shrinkage=None)
    pooled = quantize_layer(name, weight, inputs.pooled(), settings)
    if own.tokens > 1:
        lost, lost_pooled = 0.0, 0.0
        first, second = inputs.halves()
        for half, other in ((first, second), (second, first)):
            quantized, _ = quantize_layer(name, weight, half, shrinking)
            lost += other.tokens * output_loss(weight, quantized, other)
            lost_pooled += other.tokens * output_loss(weight, pooled[0], other)
        if lost < lost_pooled:
            quantized, report = quantize_layer(name, weight, own, shrinking)
            return quantized, replace(report, remedy="shrinkage")
    quantized, report = pooled
    measured: dict[str, Any] = {"tokens": own.tokens, "full_rank": False, "remedy": "pooled"}
    if own.tokens:
        measured["loss"] = output_loss(weight, quantized, own)
        measured["rtn_loss"] = output_loss(weight, rtn(weight, **grid_options(settings)), own)
    return quantized, replace(report, **measured)
