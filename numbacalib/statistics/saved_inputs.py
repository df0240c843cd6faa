"""Statistics of inputs, and the weights of their layers, in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.matrix import to_host
from numbacalib.runtime.array import Array
from numbacalib.statistics.files import save_tensors
from numbacalib.statistics.inputs import ARRAYS, OPTIONAL, InputStatistics
from numbacalib.statistics.reader import StatisticsFile, opened

_SHARED = "numbacalib.statistics"
"""Key of the file's metadata: JSON, from each layer's name to the name that stores its statistics."""


def save_statistics(
    path: str | Path,
    statistics: Mapping[str, InputStatistics],
    weights: Mapping[str, Array] | None = None,
) -> None:
    """Write the statistics of named layers to one safetensors file (extra `models`).

    Layers that share one `InputStatistics` object, since they share an input, are stored once. With
    their weights in the same file, the layers can be quantized again without the model.

    Parameters
    ----------
    path : str or Path
    statistics : mapping of str to InputStatistics
        Of the layers, by name.
    weights : mapping of str to array [M, K], optional
        Of the same layers, in any of the four dtypes.

    Raises
    ------
    OSError
        If writing fails; no new file is then left at `path`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.statistics import InputStatistics, save_statistics
    >>> statistics = InputStatistics(3)
    >>> statistics.update(np.array([[1, -4, 0], [-2, 3, 0]], np.float32))
    >>> weight = np.ones((2, 3), np.float32)
    >>> save_statistics("layers.safetensors", {"q_proj": statistics}, {"q_proj": weight})
    """
    tensors: dict[str, NDArray] = {}
    stored_as: dict[str, str] = {}
    first_name: dict[int, str] = {}
    for name, layer in statistics.items():
        stored_as[name] = first_name.setdefault(id(layer), name)
        if stored_as[name] == name:
            kinds = *ARRAYS, *layer.companions
            tensors |= {f"{name}.{kind}": to_host(getattr(layer, kind)) for kind in kinds}
            tensors[f"{name}.tokens"] = np.array(layer.tokens, np.int64)
    for name, weight in (weights or {}).items():
        tensors[f"{name}.weight"] = to_host(weight)
    save_tensors(path, tensors, metadata={_SHARED: json.dumps(stored_as)})


def load_statistics(path: str | Path) -> dict[str, InputStatistics]:
    """Read the statistics that `save_statistics` wrote; layers that shared one object share one again.

    Parameters
    ----------
    path : str or Path
        Of a safetensors file (extra `models`).

    Returns
    -------
    dict of str to InputStatistics
        By layer.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If the file is damaged or of another kind. The message is one line that names the file.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.statistics import InputStatistics, load_statistics, save_statistics
    >>> statistics = InputStatistics(3)
    >>> statistics.update(np.array([[1, -4, 0], [-2, 3, 0]], np.float32))
    >>> save_statistics("layers.safetensors", {"q_proj": statistics})
    >>> load_statistics("layers.safetensors")["q_proj"].max_abs
    array([2., 4., 0.], dtype=float32)
    """
    layers: dict[str, InputStatistics] = {}
    with opened(path, "save_statistics") as file:
        stored_as = _stored_as(file)
        for name in dict.fromkeys(stored_as.values()):
            channels = _channels(file, name)
            hessian = file.array(f"{name}.hessian", negative=True)
            if hessian.diagonal().min() < 0:
                raise file.error(f"{name}.hessian: expected a diagonal of 0 and more")
            layer = layers[name] = InputStatistics(1)
            layer.hessian = hessian
            layer.mean_abs = file.array(f"{name}.mean_abs", (channels,))
            layer.max_abs = file.array(f"{name}.max_abs", (channels,))
            layer.tokens = file.count(f"{name}.tokens")
            for kind in OPTIONAL:
                if f"{name}.{kind}" in file.names:
                    setattr(
                        layer, kind, file.array(f"{name}.{kind}", (None, channels), negative=True)
                    )
    return {name: layers[source] for name, source in stored_as.items()}


def stored_channels(path: str | Path) -> dict[str, int]:
    """Return K of the layers whose statistics a file holds, by name, from its header alone.

    Parameters
    ----------
    path : str or Path
        Of a safetensors file (extra `models`).

    Returns
    -------
    dict of str to int

    Raises
    ------
    OSError, ValueError
        As `load_statistics`.

    Examples
    --------
    >>> from numbacalib.statistics import InputStatistics, save_statistics, stored_channels
    >>> save_statistics("layers.safetensors", {"q_proj": InputStatistics(3)})
    >>> stored_channels("layers.safetensors")
    {'q_proj': 3}
    """
    with opened(path, "save_statistics") as file:
        stored_as = _stored_as(file)
        channels = {source: _channels(file, source) for source in set(stored_as.values())}
    return {name: channels[source] for name, source in stored_as.items()}


def load_weights(path: str | Path) -> dict[str, NDArray]:
    """Read the weights that `save_statistics` wrote with the statistics, by layer.

    Parameters
    ----------
    path : str or Path
        Of a safetensors file (extra `models`).

    Returns
    -------
    dict of str to array [M, K]
        In the dtypes in which they were saved.

    Raises
    ------
    OSError, ValueError
        As `load_statistics`.

    Examples
    --------
    >>> import numpy as np
    >>> from numbacalib.statistics import InputStatistics, load_weights, save_statistics
    >>> weights = {"q_proj": np.ones((2, 3), np.float16)}
    >>> save_statistics("layers.safetensors", {"q_proj": InputStatistics(3)}, weights)
    >>> load_weights("layers.safetensors")["q_proj"].dtype
    dtype('float16')
    """
    floats = ("F16", "BF16", "F32", "F64")
    with opened(path, "save_statistics") as file:
        return {
            name: file.array(
                f"{name}.weight", (None, _channels(file, source)), dtypes=floats, negative=True
            )
            for name, source in _stored_as(file).items()
            if f"{name}.weight" in file.names
        }


def _channels(file: StatisticsFile, name: str) -> int:
    """Check that a layer's statistics have all parts, of one length K, and return K."""
    shape = file.shape(f"{name}.hessian")
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 1:
        raise file.error(f"{name}.hessian: expected a square matrix, got shape {list(shape)}")
    for part, expected in (("mean_abs", shape[:1]), ("max_abs", shape[:1]), ("tokens", ())):
        if (found := file.shape(f"{name}.{part}")) != expected:
            raise file.error(f"{name}.{part}: expected shape {list(expected)}, got {list(found)}")
    return shape[0]


def _stored_as(file: StatisticsFile) -> dict[str, str]:
    """Name under which each layer's statistics are stored: its own, or that of one with the same input."""
    if _SHARED not in file.metadata:
        raise file.error("expected statistics that save_statistics wrote, got other tensors")
    try:
        stored_as = json.loads(file.metadata[_SHARED])
    except (ValueError, RecursionError):
        stored_as = None
    if not isinstance(stored_as, dict) or not all(
        isinstance(source, str) and stored_as.get(source) == source for source in stored_as.values()
    ):
        raise file.error(f"{_SHARED}: expected a JSON object of layers and their stored names")
    return stored_as
