"""Distributions of quantized weights and of their scales, by kind of layer, for the report of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.methods import QuantizedWeight

SAMPLE = 1 << 14
"""Weights of a layer that are counted: whole rows, evenly spaced."""
WEIGHT_EDGES = np.linspace(-6, 6, 49)
"""Bin edges of weights divided by the root mean square of their sample: 0.25 wide."""
SCALE_EDGES = np.exp2(np.linspace(-20, 4, 49))
"""Bin edges of scales: half an octave wide."""


def kind_of(layer: str) -> str:
    """Name of a layer without its block, and with a star for the number of an expert."""
    rest = layer.removeprefix("model.layers.").split(".")
    if len(rest) == len(layer.split(".")):  # a layer outside of the blocks
        return layer
    return ".".join("*" if part.isdecimal() else part for part in rest[1:])


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges, by kind of layer; the outer bins include all values beyond them."""

    edges: list[float]
    counts: dict[str, list[int]]

    def add(self, kind: str, values: NDArray[np.floating[Any]]) -> None:
        """Count values."""
        edges = np.asarray(self.edges)
        bins = np.searchsorted(edges[1:-1], values.ravel(), side="right")
        found = np.bincount(bins, minlength=len(edges) - 1)
        before = self.counts.get(kind)
        self.counts[kind] = (found if before is None else found + before).tolist()


class Distributions:
    """Histograms of a run's weights and scales, filled layer by layer.

    Attributes
    ----------
    weights, scales : Histogram
    """

    def __init__(self) -> None:
        self.weights = Histogram(WEIGHT_EDGES.tolist(), {})
        self.scales = Histogram(SCALE_EDGES.tolist(), {})

    def add(self, layer: str, weight: QuantizedWeight) -> None:
        """Count a sample of a layer, whose arrays are on the host."""
        rows, channels = weight.codes.shape
        step = max(1, rows * channels // SAMPLE)
        scales = weight.scales[::step]
        some = replace(
            weight, codes=weight.codes[::step], scales=scales, zeros=weight.zeros[::step]
        )
        values = some.dequantize()
        size = np.sqrt(np.mean(np.square(values)))
        self.weights.add(kind_of(layer), values / size if size else values)
        self.scales.add(kind_of(layer), scales.astype(np.float32))
