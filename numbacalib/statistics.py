"""What calibration collects of a layer's inputs: streaming, mergeable, savable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.gptq_hessian_update import gptq_hessian_update
from numbacalib.runtime import checks
from numbacalib.runtime.finite import require_finite


class InputStatistics:
    """Second moments of a linear layer's inputs, each token weighing the same.

    Parameters
    ----------
    channels : int
        K, the width of the inputs.

    Attributes
    ----------
    tokens : int
        Tokens seen.
    hessian : float32 array [K, K]
        ``2 / tokens * X^T X`` over every token seen: the GPTQ Hessian.
    """

    def __init__(self, channels: int) -> None:
        channels = checks.integer("channels", channels, 1, 1 << 31)
        self.tokens = 0
        self.hessian = np.zeros((channels, channels), np.float32)

    def update(self, inputs: NDArray) -> None:
        """Add tokens: inputs [N, K] of any length, or of more axes with the channels last.

        Any of the four dtypes; sums are float32.

        Raises
        ------
        ValueError
            If the width differs or a value is not finite; what was collected stays as it was.
        """
        channels = len(self.hessian)
        rows = inputs.reshape(-1, inputs.shape[-1])
        checks.matrix("inputs", rows, ("N", channels))
        require_finite("inputs", rows)
        if rows.dtype == np.float64:
            rows = rows.astype(np.float32)
        tokens = self.tokens + len(rows)
        gptq_hessian_update(
            self.hessian, rows, alpha=2 / tokens, beta=self.tokens / tokens, out=self.hessian
        )
        self.tokens = tokens

    def merge(self, other: InputStatistics) -> InputStatistics:
        """Return the statistics of both sets of tokens together."""
        if other.hessian.shape != self.hessian.shape:
            raise ValueError(
                f"other: expected {len(self.hessian)} channels, got {len(other.hessian)}"
            )
        merged = InputStatistics(len(self.hessian))
        merged.tokens = self.tokens + other.tokens
        share = self.tokens / max(merged.tokens, 1)
        merged.hessian[:] = share * self.hessian + (1 - share) * other.hessian
        return merged


def save_statistics(path: str | Path, statistics: Mapping[str, InputStatistics]) -> None:
    """Write the statistics of named layers to one safetensors file (extra `models`)."""
    from safetensors.numpy import save_file

    tensors = {}
    for name, layer in statistics.items():
        tensors[f"{name}.hessian"] = layer.hessian
        tensors[f"{name}.tokens"] = np.array(layer.tokens, np.int64)
    save_file(tensors, path)


def load_statistics(path: str | Path) -> dict[str, InputStatistics]:
    """Read what `save_statistics` wrote."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    statistics = {}
    for key, hessian in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind == "hessian":
            layer = InputStatistics(len(hessian))
            layer.hessian[:] = hessian
            layer.tokens = int(tensors[f"{name}.tokens"])
            statistics[name] = layer
    return statistics
