"""Quantization of equal layers, each with its own input, such as experts, together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from numbacalib.methods.codebook import CodebookWeight
from numbacalib.methods.gptq import gptq_batch
from numbacalib.methods.improvement import improved
from numbacalib.methods.layer import LayerReport, LayerSettings
from numbacalib.methods.layer_options import searched_options, share_for, solver_options
from numbacalib.methods.layers import check_layer, quantize_layer
from numbacalib.methods.measured import Layer, figures_of_inputs, named, reported
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.ops.matrix import joined_rows, reshaped
from numbacalib.runtime.alone import each_alone
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import is_cuda_array
from numbacalib.runtime.finite import start_finite_check
from numbacalib.statistics import InputStatistics


def quantize_each(
    weights: Mapping[str, ArrayT],
    statistics: Sequence[InputStatistics | None],
    settings: LayerSettings,
) -> list[tuple[QuantizedWeight[ArrayT] | CodebookWeight, LayerReport]]:
    """Quantize and measure layers of one shape, each with its own inputs, such as experts.

    On the CPU each is quantized on one thread, as many at a time as there are threads; on a GPU each step
    of GPTQ is one launch for many layers, by `gptq_batch`.

    Parameters
    ----------
    weights : mapping of str to array [M, K]
        By the names of the layers.
    statistics : sequence of InputStatistics or None
        Of each layer's inputs.
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
    >>> import numpy as np
    >>> from numbacalib.methods import LayerSettings, quantize_each
    >>> from numbacalib.statistics import InputStatistics
    >>> weights = {f"experts.{e}": np.full((2, 8), e + 1, np.float32) for e in range(2)}
    >>> statistics = [InputStatistics(8) for _ in weights]
    >>> for e, own in enumerate(statistics):
    ...     own.update(np.eye(8, dtype=np.float32)[: 4 + e])  # tokens of this expert
    >>> settings = LayerSettings(bits=4, group_size=8)
    >>> [report.tokens for _, report in quantize_each(weights, statistics, settings)]
    [4, 5]
    """
    layers = list(zip(weights, weights.values(), statistics, strict=True))
    if not any(map(is_cuda_array, weights.values())):
        return each_alone(lambda layer: quantize_layer(*layer, settings), layers)
    given = [own for own in statistics if own is not None]
    free = settings.target == "layerwise" and settings.find_grid is None
    if given and settings.method == "gptq" and free:
        return _in_one_launch(weights, given, settings)
    return [quantize_layer(*layer, settings) for layer in layers]


def _in_one_launch(
    weights: Mapping[str, Any], statistics: Sequence[InputStatistics], settings: LayerSettings
) -> list[tuple[QuantizedWeight | CodebookWeight, LayerReport]]:
    """Quantize by one `gptq_batch`, as `quantize_each`."""
    begin = time.perf_counter()
    options = searched_options(settings) | solver_options(settings)
    if settings.ranges == "weighted":
        squares = [reshaped(own.mean_square, (1, len(own.hessian))) for own in statistics]
        options["importance"] = joined_rows(squares)
    shares = [share_for(own, settings) for own in statistics]
    with named(weights):
        for own in statistics:
            check_layer(own, settings, None)
        # by name: the stack's own check knows only an index
        start_finite_check({f"{name}: weight": each for name, each in weights.items()})()
        hessians = _stacked([own.hessian for own in statistics])
        found = gptq_batch(_stacked(list(weights.values())), hessians, **options, shrinkage=shares)
        found = [
            improved([weight], [own], given.hessian, replace(settings, shrinkage=share))[0]
            for weight, own, given, share in zip(
                weights.values(), found, statistics, shares, strict=True
            )
        ]
    together = (time.perf_counter() - begin) / len(weights)
    measured = [
        figures_of_inputs(given) | {"shrinkage": share}
        for given, share in zip(statistics, shares, strict=True)
    ]
    layers = [
        Layer(name, weight, weight, given)
        for (name, weight), given in zip(weights.items(), statistics, strict=True)
    ]
    return [
        reported(layer, own, settings, figures, together)
        for layer, own, figures in zip(layers, found, measured, strict=True)
    ]


def _stacked(matrices: Sequence[Any]) -> Any:
    """Copy equal matrices [M, K] into an array [E, M, K]."""
    return reshaped(joined_rows(matrices), (len(matrices), *matrices[0].shape))
