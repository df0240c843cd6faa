"""Vectors and small tensors that GGUF files store with other values or shapes than Hugging Face's.

Source: llama.cpp's converter, https://github.com/ggml-org/llama.cpp/tree/master/conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig
from numbacalib.models.description import Architecture
from numbacalib.models.layer_tensors import is_norm, layer_of

__all__ = ["as_ours", "as_stored", "is_other", "our_shape", "stored_shape"]

Values = NDArray[Any]


class _Form(NamedTuple):
    """Conversion of a tensor's values to GGUF's, and back to ours."""

    store: Callable[[Values], Values]
    load: Callable[[Values], Values]


def as_stored(config: ModelConfig, name: str, values: Values) -> Values:
    """Convert a tensor of Hugging Face's to GGUF's values and shape; converted values are float32."""
    form = _form(config, name)
    with np.errstate(all="ignore"):  # users of the tensor check for non-finite values
        stored = values if form is None else form.store(values)
    return stored.reshape(stored_shape(config, name, values.shape))


def as_ours(config: ModelConfig, name: str, stored: Values) -> Values:
    """Undo `as_stored`.

    Raises
    ------
    ValueError
        If a value is none that `as_stored` returns.
    """
    form = _form(config, name)
    with np.errstate(all="ignore"):
        values = stored if form is None else form.load(stored)
    return values.reshape(our_shape(config.architecture, name, stored.shape))


def is_other(config: ModelConfig, name: str) -> bool:
    """Return whether a tensor has other values in GGUF."""
    return _form(config, name) is not None


def stored_shape(config: ModelConfig, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in GGUF of a tensor of Hugging Face's."""
    if _is_row(config.architecture, name):
        return shape[1:]
    if _is_column(config.architecture, name):
        return (*shape, 1)
    if _is_grouped(config.architecture, name):
        assert config.state_space is not None
        return config.state_space.groups, shape[0] // config.state_space.groups
    taps = _is_taps(config.architecture, name)
    return (shape[0], shape[2]) if taps and len(shape) == 3 else shape


def our_shape(architecture: Architecture, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Undo `stored_shape`."""
    if _is_row(architecture, name):
        return (1, *shape[-1:])
    flat = _is_column(architecture, name) or _is_grouped(architecture, name)
    if flat and len(shape) == 2:
        return (shape[0] * shape[1],)
    return (shape[0], 1, shape[1]) if _is_taps(architecture, name) and len(shape) == 2 else shape


def _is_row(architecture: Architecture, name: str) -> bool:
    experts = architecture.experts
    return experts is not None and name.endswith(experts.rows)


def _is_taps(architecture: Architecture, name: str) -> bool:
    delta, space, short = architecture.delta, architecture.state_space, architecture.convolution
    convolutions = [own.convolution for own in (delta, space) if own is not None]
    convolutions += [short.taps] if short is not None else []
    return name.endswith(tuple(f".{convolution}.weight" for convolution in convolutions))


def _is_column(architecture: Architecture, name: str) -> bool:
    """Return whether a tensor has one number per head of Mamba 2, and is stored as ``[heads, 1]``."""
    space = architecture.state_space
    return space is not None and name.endswith((f".{space.slopes}", f".{space.shares}"))


def _is_grouped(architecture: Architecture, name: str) -> bool:
    """Return whether a tensor is the norm of Mamba 2, stored as ``[groups, numbers of each]``."""
    space = architecture.state_space
    return space is not None and name.endswith(f".{space.norm}.weight")


def _form(config: ModelConfig, name: str) -> _Form | None:
    """Return the conversion of a tensor that has other values in GGUF; None for any other."""
    delta, space, layer = (
        config.architecture.delta,
        config.architecture.state_space,
        layer_of(name),
    )
    slopes = [own.slopes for own in (delta, space) if own is not None]
    if layer is not None and layer[1] in slopes:
        return _Form(_decays, _slopes)
    offset = np.float32(config.architecture.norm_offset)  # GGUF's norms include it
    if not offset or not is_norm(config, name):
        return None
    return _Form(lambda values: values.astype(np.float32) + offset, lambda stored: stored - offset)


def _decays(slopes: Values) -> Values:
    """Return the factors in decays, of which Hugging Face stores logarithms."""
    return -np.exp(slopes.astype(np.float64)).astype(np.float32)


def _slopes(decays: Values) -> Values:
    if not (decays < 0).all():
        raise ValueError("expected numbers below 0, factors of decays")
    return np.log(-decays.astype(np.float64)).astype(np.float32)
