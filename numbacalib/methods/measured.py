"""Reports of layers: losses of a quantized weight, and figures of its inputs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from numbacalib.methods.codebook import CodebookWeight
from numbacalib.methods.layer import LayerReport, LayerSettings
from numbacalib.methods.layer_options import grid_options
from numbacalib.methods.loss import start_clipped_share
from numbacalib.methods.quantized_weight import QuantizedWeight
from numbacalib.methods.rtn import rtn
from numbacalib.methods.target import start_output_losses
from numbacalib.ops.matrix import diagonal, to_host
from numbacalib.statistics import InputStatistics

log = logging.getLogger("numbacalib")


class Layer(NamedTuple):
    """A layer that has been quantized."""

    name: str
    weight: Any
    """[M, K]."""
    target: Any
    """[M, K], which its codes approximate."""
    statistics: InputStatistics | None


def reported(
    layer: Layer,
    quantized: QuantizedWeight | CodebookWeight,
    settings: LayerSettings,
    measured: Mapping[str, Any],
    seconds: float,
) -> tuple[QuantizedWeight | CodebookWeight, LayerReport]:
    """Measure a quantized layer and report on it, adding earlier figures `measured` and `seconds`."""
    begin = time.perf_counter()
    figures: dict[str, Any] = {}
    if isinstance(quantized, QuantizedWeight) and quantized.report is not None:
        figures = quantized.report._asdict()
    with named([layer.name]):
        figures |= measured
        figures |= _measured(layer, quantized, settings)
    for key in ("loss", "rtn_loss"):
        if figures.get(key) is not None and not math.isfinite(figures[key]):
            log.warning("%s: its %s is beyond float32", layer.name, key)
            figures[key] = None
    report = LayerReport(
        name=layer.name,
        method=settings.method,
        shape=(layer.weight.shape[0], layer.weight.shape[1]),
        bits=quantized.bits,
        group_size=quantized.group_size,
        seconds=seconds + time.perf_counter() - begin,
        **figures,
    )
    if report.fell_back:
        log.warning(
            "%s: the Hessian was not positive definite with percdamp %g; %g was enough",
            layer.name,
            settings.percdamp,
            report.percdamp,
        )
    return quantized, report


@contextmanager
def named(names: Iterable[str]) -> Iterator[None]:
    """Prefix errors with the first of the layers' names, unless they already begin with one."""
    try:
        yield
    except (ValueError, TypeError, np.linalg.LinAlgError) as error:
        begins = [name for name in names if str(error).startswith(f"{name}: ")]
        text = str(error) if begins else f"{next(iter(names))}: {error}"
        raise type(error)(text) from error


def figures_of_inputs(statistics: InputStatistics) -> dict[str, Any]:
    """Return the figures of reports about a layer's inputs."""
    hessian = statistics.hessian
    dead = int((to_host(diagonal(hessian)) == 0).sum())
    full = statistics.tokens >= len(hessian) - dead
    return {"tokens": statistics.tokens, "full_rank": full, "dead": dead}


def _measured(
    layer: Layer, quantized: QuantizedWeight | CodebookWeight, settings: LayerSettings
) -> dict[str, Any]:
    """Measure a quantized layer; return figures by their names in the report."""
    measured: dict[str, Any] = {}
    clipped = losses = None  # all measurements start before the first wait for a GPU
    if isinstance(quantized, QuantizedWeight):
        clipped = start_clipped_share(layer.target, quantized)
    if layer.statistics is not None:
        rounded = rtn(layer.weight, **grid_options(settings), wait=False)
        losses = start_output_losses(layer.weight, [quantized, rounded], layer.statistics)
        rounded.check()
    if clipped is not None:
        measured["clipped"] = clipped()
    if losses is not None:
        measured["loss"], measured["rtn_loss"] = losses()
    return measured
