"""Equal layers with an input of their own each, such as experts, quantized together."""

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
from numbacalib.methods.measured import figures_of_inputs, named, reported
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
    """Quantize equal layers with an input of their own each, such as experts, and measure each.

    On the CPU each is quantized on one thread, as many at a time as there are threads; on a GPU steps of
    GPTQ are launches for many layers, as `gptq_batch` has them.

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
        return _in_few_launches(weights, given, settings)
    return [quantize_layer(*layer, settings) for layer in layers]


def _in_few_launches(
    weights: Mapping[str, Any], statistics: Sequence[InputStatistics], settings: LayerSettings
) -> list[tuple[QuantizedWeight | CodebookWeight, LayerReport]]:
    """Do what `quantize_each` does, by one `gptq_batch` for each share of shrinkage."""
    begin = time.perf_counter()
    names, shares = list(weights), [share_for(own, settings) for own in statistics]
    found: dict[str, QuantizedWeight] = {}
    with named(weights):
        for own in statistics:
            check_layer(own, settings, None)
        finite = [start_finite_check(f"{name}: weight", each) for name, each in weights.items()]
        for require_finite_weight in finite:  # by name: the stack's own check has a number alone
            require_finite_weight()
        for share in dict.fromkeys(shares):
            alike = [e for e, each in enumerate(shares) if each == share]
            own_names, inputs = [names[e] for e in alike], [statistics[e] for e in alike]
            batch = _batch([weights[name] for name in own_names], inputs, settings)
            found |= zip(own_names, gptq_batch(**batch, shrinkage=share), strict=True)
        for (name, weight), own, share in zip(weights.items(), statistics, shares, strict=True):
            chosen = replace(settings, shrinkage=share)
            found[name] = improved(weight, found[name], own.hessian, chosen)
    together = (time.perf_counter() - begin) / len(weights)
    return [
        reported(
            name,
            weight,
            weight,
            found[name],
            own,
            settings,
            figures_of_inputs(own) | {"shrinkage": share},
            together,
        )
        for (name, weight), own, share in zip(weights.items(), statistics, shares, strict=True)
    ]


def _batch(
    weights: Sequence[Any], statistics: Sequence[InputStatistics], settings: LayerSettings
) -> dict[str, Any]:
    """Return arguments of `gptq_batch` for layers, but the shrinkage."""
    options = searched_options(settings) | solver_options(settings)
    if settings.ranges == "weighted":
        squares = [reshaped(own.mean_square, (1, len(own.hessian))) for own in statistics]
        options["importance"] = joined_rows(squares)
    hessians = _stacked([own.hessian for own in statistics])
    return options | {"weights": _stacked(weights), "hessians": hessians}


def _stacked(matrices: Sequence[Any]) -> Any:
    """Copy equal matrices [M, K] into an array [E, M, K]."""
    return reshaped(joined_rows(matrices), (len(matrices), *matrices[0].shape))
