"""What calibration collects of a layer's inputs: streaming, mergeable, savable."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.gptq_hessian_update import gptq_hessian_update
from numbacalib.ops.magnitudes import channel_magnitudes
from numbacalib.ops.matrix import blended, cast, diagonal, from_host, larger, scaled, to_host, zeros
from numbacalib.runtime import checks
from numbacalib.runtime.backend import arrays_of_one_device
from numbacalib.runtime.finite import require_finite


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

        Any of the four dtypes; sums are float32.

        Raises
        ------
        ValueError, TypeError
            If the width differs, a value is not finite, or the inputs are on another device than those
            before; what was collected stays as it was.
        """
        (inputs,) = arrays_of_one_device(inputs=inputs)
        channels = len(self.hessian)
        rows = checks.rows_of(inputs)
        checks.matrix("inputs", rows, ("N", channels))
        require_finite("inputs", rows)
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
        If the file is another kind of safetensors file, or damaged.
    """
    layers: dict[str, InputStatistics] = {}
    with _opened(path) as (file, stored_as):
        _channels(path, file, stored_as)
        for name in dict.fromkeys(stored_as.values()):
            hessian = file.get_tensor(f"{name}.hessian")
            layer = layers[name] = InputStatistics(len(hessian))
            layer.hessian = hessian
            layer.mean_abs = file.get_tensor(f"{name}.mean_abs")
            layer.max_abs = file.get_tensor(f"{name}.max_abs")
            layer.tokens = int(file.get_tensor(f"{name}.tokens"))
    return {name: layers[source] for name, source in stored_as.items()}


def stored_channels(path: str | Path) -> dict[str, int]:
    """Return K of the layers whose statistics a file holds, by name, from its header alone.

    Raises
    ------
    ValueError
        As `load_statistics`.
    """
    with _opened(path) as (file, stored_as):
        return _channels(path, file, stored_as)


def load_weights(path: str | Path) -> dict[str, NDArray]:
    """Read the weights that `save_statistics` wrote beside the statistics, by layer."""
    with _opened(path) as (file, stored_as):
        keys = set(file.keys())
        return {
            name: file.get_tensor(f"{name}.weight")
            for name in stored_as
            if f"{name}.weight" in keys
        }


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a file of statistics, and say under which layer's name each layer's stand."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
            if not metadata or _SHARED not in metadata:
                raise ValueError(f"{path}: expected statistics that save_statistics wrote")
            yield file, _stored_as(path, metadata[_SHARED])
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file ({error})") from None


def _stored_as(path: str | Path, text: str) -> dict[str, str]:
    try:
        stored_as = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_SHARED}: not JSON ({error})") from None
    if not isinstance(stored_as, dict) or not all(
        isinstance(name, str) for name in stored_as.values()
    ):
        raise ValueError(f"{path}: {_SHARED}: expected names of layers by names of layers")
    return stored_as


def _channels(path: str | Path, file: Any, stored_as: Mapping[str, str]) -> dict[str, int]:
    """K of each layer, once all its arrays are known to be there and of that length."""
    keys = set(file.keys())
    channels = {}
    for name in dict.fromkeys(stored_as.values()):
        if f"{name}.hessian" not in keys:
            raise ValueError(f"{path}: {name}.hessian: expected a tensor of this name, found none")
        K = (file.get_slice(f"{name}.hessian").get_shape() or [0])[0]
        expected = {"hessian": ("F32", [K, K]), "mean_abs": ("F32", [K]), "max_abs": ("F32", [K])}
        for kind, form in (expected | {"tokens": ("I64", [])}).items():
            found: tuple[str, list[int]] | None = None
            if f"{name}.{kind}" in keys:
                part = file.get_slice(f"{name}.{kind}")
                found = part.get_dtype(), part.get_shape()
            if found != form:
                raise ValueError(f"{path}: {name}.{kind}: expected {form}, got {found}")
        channels[name] = K
    return {name: channels[source] for name, source in stored_as.items()}
