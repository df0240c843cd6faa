"""What calibration collects of a layer's inputs: streaming, mergeable, savable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.gptq_hessian_update import gptq_hessian_update
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import blended, cast, diagonal, from_host, larger, scaled, to_host, zeros
from numbacalib.runtime import checks
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite, square_limit


class InputStatistics:
    """All that the methods need of a linear layer's inputs, each token weighing the same.

    They are kept on the device of the first inputs: NumPy arrays, or Numba device arrays.

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
    mean_abs, max_abs : float32 arrays [K]
        ``mean_n |x[n, j]|`` and ``max_n |x[n, j]|``: the activation magnitudes of AWQ.
    """

    def __init__(self, channels: int) -> None:
        channels = checks.integer("channels", channels, 1, 1 << 31)
        self.tokens = 0
        self.hessian: Any = np.zeros((channels, channels), np.float32)
        self.mean_abs: Any = np.zeros(channels, np.float32)
        self.max_abs: Any = np.zeros(channels, np.float32)

    @property
    def mean_square(self) -> Any:
        """``mean_n x[n, j] ** 2``, [K]: llama.cpp's importance matrix."""
        return scaled(diagonal(self.hessian), 0.5)

    def update(self, inputs: Any) -> None:
        """Add tokens: inputs [N, K] of any length, or of more axes with the channels last.

        Any of the four dtypes. Sums are float32, which holds those of squares of magnitudes below
        ``1.3e19 / sqrt(N)``.

        Raises
        ------
        ValueError, TypeError
            If the width differs, a value is not finite or too large for that (the first index is
            named), or the inputs are on another device than those before; what was collected stays as
            it was.
        """
        with arrays_of_one_device(inputs=inputs) as (inputs,):
            channels = len(self.hessian)
            rows = checks.tokens("inputs", inputs, channels)
            require_finite("inputs", inputs, square_limit(len(rows)))
            if rows.dtype == np.float64:
                rows = cast(rows, np.float32)
            if self.tokens == 0:
                self.hessian = zeros((channels, channels), like=rows)
                self.mean_abs, self.max_abs = zeros((channels,), rows), zeros((channels,), rows)
            tokens = self.tokens + len(rows)
            share = self.tokens / tokens
            gptq_hessian_update(self.hessian, rows, alpha=2 / tokens, beta=share, out=self.hessian)
            mean_abs, max_abs = channel_magnitudes(rows)
            self.mean_abs = blended(self.mean_abs, mean_abs, share)
            self.max_abs = larger(self.max_abs, max_abs)
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
        # what has seen nothing may be on another device
        left, right = (self if self.tokens else other), (other if other.tokens else self)
        merged.hessian = blended(left.hessian, right.hessian, share)
        merged.mean_abs = blended(left.mean_abs, right.mean_abs, share)
        merged.max_abs = larger(left.max_abs, right.max_abs)
        return merged

    def divided(self, scales: Any) -> InputStatistics:
        """Return the statistics of the same inputs divided by channel scales [K], all positive."""
        factors = from_host(1 / to_host(scales), like=self.hessian)
        result = InputStatistics(len(self.hessian))
        result.tokens = self.tokens
        result.hessian = scaled(self.hessian, factors, factors)
        result.mean_abs = scaled(self.mean_abs, factors)
        result.max_abs = scaled(self.max_abs, factors)
        return result


_ARRAYS = ("hessian", "mean_abs", "max_abs")
_SHARED = "numbacalib.statistics"
"""Key of the file's metadata: JSON, from each layer's name to the one its statistics stand under."""


def save_statistics(
    path: str | Path,
    statistics: Mapping[str, InputStatistics],
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Write the statistics of named layers to one safetensors file (extra `models`).

    Layers that share one `InputStatistics` object, since they share an input, are stored once. With
    their weights beside them, the layers can be quantized again without the model.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray] = {}
    stored_as: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for name, layer in statistics.items():
        stored_as[name] = first_name.setdefault(id(layer), name)
        if stored_as[name] == name:
            tensors |= {f"{name}.{kind}": to_host(getattr(layer, kind)) for kind in _ARRAYS}
            tensors[f"{name}.tokens"] = np.array(layer.tokens, np.int64)
    for name, weight in (weights or {}).items():
        tensors[f"{name}.weight"] = to_host(weight)
    save_file(tensors, path, metadata={_SHARED: json.dumps(stored_as)})


def load_statistics(path: str | Path) -> dict[str, InputStatistics]:
    """Read what `save_statistics` wrote; layers that shared one object do so again.

    Raises
    ------
    ValueError
        If the file is another kind of safetensors file.
    """
    from safetensors import safe_open

    layers: dict[str, InputStatistics] = {}
    with safe_open(path, framework="numpy") as file:
        stored_as = _stored_as(path, file.metadata())
        for name in dict.fromkeys(stored_as.values()):
            hessian = file.get_tensor(f"{name}.hessian")
            layer = layers[name] = InputStatistics(len(hessian))
            layer.hessian = hessian
            layer.mean_abs = file.get_tensor(f"{name}.mean_abs")
            layer.max_abs = file.get_tensor(f"{name}.max_abs")
            layer.tokens = int(file.get_tensor(f"{name}.tokens"))
    return {name: layers[source] for name, source in stored_as.items()}


def load_weights(path: str | Path) -> dict[str, NDArray]:
    """Read the weights that `save_statistics` wrote beside the statistics, by layer."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        names, keys = _stored_as(path, file.metadata()), set(file.keys())
        return {
            name: file.get_tensor(f"{name}.weight") for name in names if f"{name}.weight" in keys
        }


def _stored_as(path: str | Path, metadata: dict[str, str] | None) -> dict[str, str]:
    if not metadata or _SHARED not in metadata:
        raise ValueError(f"{path}: expected statistics that save_statistics wrote")
    stored_as: dict[str, str] = json.loads(metadata[_SHARED])
    return stored_as
