"""Quantization of layers by any method, each with a report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from numbacalib.methods.awq import awq_clip
from numbacalib.methods.codebook import CodebookWeight, codebook
from numbacalib.methods.gptq import gptq_shared
from numbacalib.methods.improvement import improved
from numbacalib.methods.layer import LayerReport, LayerSettings
from numbacalib.methods.layer_options import searched_options, share_for, solver_options
from numbacalib.methods.measured import Layer, figures_of_inputs, named, reported
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rtn import rtn
from numbacalib.methods.settings import AskedGrid, FoundGrids, GridArrays, GridFinder, grid_settings
from numbacalib.methods.target import propagated_targets
from numbacalib.ops.columns import magnitude_max
from numbacalib.ops.matrix import to_host
from numbacalib.runtime.array import ArrayT
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite
from numbacalib.statistics import InputStatistics


def quantize_layer(
    name: str,
    weight: ArrayT,
    statistics: InputStatistics | None,
    settings: LayerSettings,
    importance: ArrayT | None = None,
) -> tuple[QuantizedWeight[ArrayT] | CodebookWeight, LayerReport]:
    """Quantize one layer and measure it against round-to-nearest.

    Parameters
    ----------
    name : str
        For the report, for errors and for the log.
    weight : array [M, K], float16, bfloat16, float32 or float64
    statistics : InputStatistics or None
        Of the layer's inputs. None is for methods that need none; no loss is measured then.
    settings : LayerSettings
    importance : array [K] or [M, K], optional
        Weights of the errors with the ranges "weighted", instead of the mean squares of the inputs:
        Fisher information, or the contents of an importance file.

    Returns
    -------
    quantized : QuantizedWeight or CodebookWeight
    report : LayerReport

    Raises
    ------
    ValueError, TypeError, numpy.linalg.LinAlgError
        As `gptq` and `rtn`, with the layer's name in front.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import LayerSettings, quantize_layer
    >>> from numbacalib.statistics import InputStatistics
    >>> inputs = np.ones((4, 8), np.float32)
    >>> inputs[:, 0] = 16  # a channel with large inputs
    >>> statistics = InputStatistics(8)
    >>> statistics.update(inputs)
    >>> weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    >>> settings = LayerSettings(bits=3, group_size=8)
    >>> quantized, report = quantize_layer("mlp.down_proj", weight, statistics, settings)
    >>> quantized.codes.shape, report.tokens, report.loss < 0.1 * report.rtn_loss
    ((2, 8), 4, True)
    """
    importances = None if importance is None else {name: importance}
    (result,) = quantize_layers({name: weight}, statistics, settings, importances)
    return result


def quantize_layers(
    weights: Mapping[str, ArrayT],
    statistics: InputStatistics | None,
    settings: LayerSettings,
    importance: Mapping[str, ArrayT] | None = None,
) -> list[tuple[QuantizedWeight[ArrayT] | CodebookWeight, LayerReport]]:
    """Quantize layers that have one input, such as a block's q, k and v, and measure each.

    Results that depend on the input alone, such as the factor of GPTQ's Hessian, are computed once.

    Parameters
    ----------
    weights : mapping of str to array [M_i, K]
        By the names of the layers.
    statistics, settings
        As in `quantize_layer`, the same for all.
    importance : mapping of str to array [K] or [M_i, K], optional
        Of each layer, for `quantize_layer`.

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
    >>> from numbacalib.methods import LayerSettings, quantize_layers
    >>> from numbacalib.statistics import InputStatistics
    >>> inputs = np.ones((4, 8), np.float32)
    >>> inputs[:, 0] = 16  # a channel with large inputs
    >>> statistics = InputStatistics(8)
    >>> statistics.update(inputs)
    >>> weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    >>> settings = LayerSettings(bits=3, group_size=8)
    >>> layers = {"q_proj": weight, "k_proj": -weight}
    >>> for quantized, report in quantize_layers(layers, statistics, settings):
    ...     print(report.name, quantized.codes.shape)
    q_proj (2, 8)
    k_proj (2, 8)
    """
    begin = time.perf_counter()
    with named(weights):
        check_layer(statistics, settings, importance)
        if settings.shrinkage is None and statistics is not None:
            settings = replace(settings, shrinkage=share_for(statistics, settings))
        targets = _targets(weights, statistics, settings)
        found, measured = _quantized(targets, statistics, settings, importance)
        if statistics is not None:
            own_targets = [targets[name] for name in weights]
            found = improved(own_targets, found, statistics.hessian, settings)
            measured |= figures_of_inputs(statistics)
    together = (time.perf_counter() - begin) / len(weights)
    return [
        reported(
            Layer(*each, targets[each[0]], statistics), quantized, settings, measured, together
        )
        for each, quantized in zip(weights.items(), found, strict=True)
    ]


def solve(
    weights: Mapping[str, ArrayT],
    statistics: Mapping[str, InputStatistics],
    settings: LayerSettings,
    importance: Mapping[str, ArrayT] | None = None,
) -> Iterator[tuple[QuantizedWeight[ArrayT] | CodebookWeight, LayerReport]]:
    """Quantize named layers from their weights and statistics alone, one after the other.

    With `load_weights` and `load_statistics` this needs neither the model nor the text again,
    for any bits, groups and method.

    Parameters
    ----------
    weights : mapping of str to array [M, K]
        Of the layers, by name.
    statistics : mapping of str to InputStatistics
        Of each layer's inputs.
    settings : LayerSettings
    importance : mapping of str to array [K] or [M, K], optional
        Of each layer, for `quantize_layer`.

    Yields
    ------
    quantized : QuantizedWeight or CodebookWeight
    report : LayerReport
        Of the layers in the order of the weights.

    Raises
    ------
    ValueError
        If a layer has no statistics, or no importance where others have, before any work.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.methods import LayerSettings, solve
    >>> from numbacalib.statistics import InputStatistics
    >>> inputs = np.ones((4, 8), np.float32)
    >>> inputs[:, 0] = 16  # a channel with large inputs
    >>> statistics = InputStatistics(8)
    >>> statistics.update(inputs)
    >>> weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    >>> settings = LayerSettings(bits=3, group_size=8)
    >>> for quantized, report in solve({"q_proj": weight}, {"q_proj": statistics}, settings):
    ...     print(report.name, quantized.codes.shape)
    q_proj (2, 8)
    """
    given = {"statistics": statistics} | ({} if importance is None else {"importance": importance})
    for argument, layers in given.items():
        if missing := [name for name in weights if name not in layers]:
            raise ValueError(f"{argument}: expected one for each weight, none for {missing[0]}")
    for name, weight in weights.items():
        weights_of_errors = None if importance is None else importance[name]
        yield quantize_layer(name, weight, statistics[name], settings, weights_of_errors)


def check_layer(
    statistics: InputStatistics | None, settings: LayerSettings, importance: Any
) -> None:
    """Raise an error if a layer's settings do not fit what is known of its inputs."""
    settings.check()
    if importance is not None and settings.ranges != "weighted":
        raise ValueError(f"importance: expected None with ranges {settings.ranges!r}")
    if settings.calibrated(importance is not None):
        if statistics is None:
            raise ValueError("statistics: expected the layer's inputs to be calibrated, got None")
        if statistics.tokens == 0:
            raise ValueError("statistics: expected at least one token")
    if settings.target == "propagated" and (statistics is None or statistics.cross is None):
        raise ValueError("statistics: expected the original model's inputs too for this target")


def _targets(
    weights: Mapping[str, Any], statistics: InputStatistics | None, settings: LayerSettings
) -> Mapping[str, Any]:
    """Return the matrices that layers should match: their weights, or targets for quantized inputs."""
    if statistics is None or settings.target == "layerwise":
        return weights
    keys = {f"{name}: weight": weight for name, weight in weights.items()}
    moments = statistics.hessian, statistics.cross, statistics.residual
    assert settings.shrinkage is not None  # found by now
    smoothing = settings.percdamp, settings.damping_tries, settings.shrinkage
    found = propagated_targets(keys, *moments, settings.target_strength, *smoothing)
    return dict(zip(weights, found, strict=True))


def _quantized(
    targets: Mapping[str, Any],
    statistics: InputStatistics | None,
    settings: LayerSettings,
    importance: Mapping[str, Any] | None,
) -> tuple[Sequence[QuantizedWeight | CodebookWeight], dict[str, Any]]:
    """Quantize by the settings' method; also return the figures that the reports of all layers share."""
    alike = searched_options(settings)
    if settings.ranges == "weighted" and importance is None and statistics is not None:
        alike["importance"] = statistics.mean_square
    options = {name: dict(alike) for name in targets}
    if importance is not None:
        for name, own in options.items():
            own["importance"] = importance[name]
    if settings.find_grid is None:
        return _by_method(targets, statistics, settings, options)
    hessian = None
    if settings.ranges == "weighted" and importance is None and statistics is not None:
        hessian = statistics.hessian
    grids = _found_grids(targets, settings.find_grid, options, hessian)
    found, measured = _by_method(targets, statistics, settings, options)
    stored: list[QuantizedWeight | CodebookWeight] = []
    for quantized, grid in zip(found, grids, strict=True):
        assert isinstance(quantized, QuantizedWeight)  # see `LayerSettings.check_fixed`
        stored.append(replace(quantized, global_scale=grid.global_scale))
    return stored, measured


def _by_method(
    targets: Mapping[str, Any],
    statistics: InputStatistics | None,
    settings: LayerSettings,
    options: Mapping[str, dict[str, Any]],
) -> tuple[Sequence[QuantizedWeight | CodebookWeight], dict[str, Any]]:
    """Quantize with each layer's own `options` of the method."""
    if statistics is not None and settings.method == "gptq":
        return _gptq(targets, statistics, settings, options)
    found = []
    for name, target in targets.items():
        with named([name]):
            found.append(_alone(target, statistics, settings, options[name]))
    return found, {}


def _alone(
    target: Any,
    statistics: InputStatistics | None,
    settings: LayerSettings,
    options: Mapping[str, Any],
) -> QuantizedWeight | CodebookWeight:
    """Quantize a layer by a method whose layers share no work."""
    if settings.method == "kmeans":
        return codebook(target, bits=settings.bits, importance=options.get("importance"))
    if statistics is not None and settings.ranges == "clip":
        return awq_clip(target, statistics.hessian, **options)
    return rtn(target, **options)


_FIXED = ("scales", "zeros")
"""Options that each weight has for itself, if a format fixes its grid."""


def _found_grids(
    targets: Mapping[str, Any],
    find: GridFinder,
    options: Mapping[str, dict[str, Any]],
    hessian: Any,
) -> list[FoundGrids]:
    """Find scales and zeros as a format fixes them; in `options` they replace the search."""
    reach = [to_host(magnitude_max(each, np.dtype(np.float32))) for each in targets.values()]
    largest = float(np.max([own.max() for own in reach]))
    grids = []
    for name, own in options.items():
        search, importance = own.pop("search", None), own.pop("importance", None)
        arrays = {"weight": targets[name], "importance": importance, "hessian": hessian}
        with named([name]), arrays_of_one_device(**arrays) as (weight, importance, squares):
            given = grid_settings(weight, AskedGrid(search=search, **own), GridArrays(importance))
            require_finite("weight", weight)
            grids.append(find(weight, given._replace(hessian=squares, largest=largest)))
        own["scales"], own["zeros"] = grids[-1].scales, grids[-1].zeros
    return grids


def _gptq(
    targets: Mapping[str, Any],
    statistics: InputStatistics,
    settings: LayerSettings,
    options: Mapping[str, dict[str, Any]],
) -> tuple[list[QuantizedWeight], dict[str, Any]]:
    """Quantize by GPTQ, together if the layers can share; `options` are each one's grid and search."""
    solver = solver_options(settings) | {"shrinkage": settings.shrinkage}
    first, *others = options.values()
    alike = [key for key in first if key not in _FIXED]
    same = all(own[key] is first[key] for own in others for key in alike)
    apart = not same or len({target.dtype for target in targets.values()}) > 1
    found: list[QuantizedWeight] = []
    for names in [[name] for name in targets] if apart else [list(targets)]:
        keys = {name: f"{name}: weight" for name in names}
        own = {key: options[names[0]][key] for key in alike}
        for key in _FIXED:
            if first.get(key) is not None:
                own[key] = {keys[name]: options[name][key] for name in names}
        weights = {keys[name]: targets[name] for name in names}
        found += gptq_shared(weights, statistics.hessian, **solver, **own).values()
    return found, {"shrinkage": settings.shrinkage}
