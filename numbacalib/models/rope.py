"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and its scaling variants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import Rope
from numbacalib.models.place import HOST, Place
from numbacalib.models.rope_parameters import yarn_magnitude

__all__ = ["RotaryEmbedding", "inverse_frequencies"]

Frequencies = tuple[NDArray[np.float64], float]


def _powers(dim: int, theta: float) -> NDArray[np.float64]:
    return theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def _default(rope: Rope, _length: int) -> Frequencies:
    return _powers(rope.dim, rope.theta), 1.0


def _linear(rope: Rope, _length: int) -> Frequencies:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595)."""
    factor = rope.scaling["factor"]
    return _powers(rope.dim, rope.theta) / factor, 1.0


def _dynamic(rope: Rope, length: int) -> Frequencies:
    """NTK-aware base that grows with the sequence length (Peng et al. 2023, arXiv:2309.00071, app. A)."""
    dim, factor = rope.dim, rope.scaling["factor"]
    stretch = max(length, rope.max_position_embeddings) / rope.max_position_embeddings
    theta = rope.theta * (factor * stretch - (factor - 1)) ** (dim / (dim - 2))
    return _powers(dim, theta), 1.0


def _yarn(rope: Rope, _length: int) -> Frequencies:
    """YaRN (Peng et al. 2023, arXiv:2309.00071, section 3): interpolate slow dimensions only."""
    given, dim = rope.scaling, rope.dim
    factor = given["factor"]
    original = given["original_max_position_embeddings"]

    def dimension_of(rotations: float) -> float:
        """Return the index of the pair with so many rotations within the original context."""
        log_ratio = math.log(original / (rotations * 2 * math.pi))
        return dim * log_ratio / (2 * math.log(rope.theta))

    low = dimension_of(given.get("beta_fast") or 32)
    high = dimension_of(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low if high != low else 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / width, 0, 1)
    powers = _powers(dim, rope.theta)
    return powers * (1 - ramp) + powers / factor * ramp, _yarn_attention(rope, factor)


def _yarn_attention(rope: Rope, factor: float) -> float:
    given = rope.scaling
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    if given.get("mscale") and given.get("mscale_all_dim"):
        whole = yarn_magnitude(factor, given["mscale_all_dim"])
        return yarn_magnitude(factor, given["mscale"]) / whole
    return yarn_magnitude(factor)


def _llama3(rope: Rope, _length: int) -> Frequencies:
    """Llama 3.1: long wavelengths are interpolated, short ones kept, with a smooth transition."""
    factor = rope.scaling["factor"]
    original = rope.scaling["original_max_position_embeddings"]
    low, high = rope.scaling["low_freq_factor"], rope.scaling["high_freq_factor"]
    powers = _powers(rope.dim, rope.theta)
    turns = original * powers / (2 * math.pi)
    # a hard step if the bounds are equal, as in Llama 4's files
    kept = np.clip((turns - low) / (high - low), 0, 1) if high > low else turns > low
    return powers * (kept + (1 - kept) / factor), 1.0


def _longrope(rope: Rope, length: int) -> Frequencies:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753): a factor for each pair of dimensions."""
    given = rope.scaling
    original = given["original_max_position_embeddings"]
    key = "long_factor" if length > original else "short_factor"
    factors = np.asarray(given[key], dtype=np.float64)
    scaling = given.get("attention_factor")
    if scaling is None:
        factor = given.get("factor") or rope.max_position_embeddings / original
        scaling = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return _powers(rope.dim, rope.theta) / factors, float(scaling)


def _proportional(rope: Rope, _length: int) -> Frequencies:
    """Gemma 4: only the pairs of highest frequency are rotated."""
    count = int(rope.scaling.get("partial_rotary_factor", 1.0) * rope.dim // 2)
    powers = _powers(rope.dim, rope.theta) / rope.scaling.get("factor", 1.0)
    return np.where(np.arange(rope.dim // 2) < count, powers, 0.0), 1.0


def _none(rope: Rope, _length: int) -> Frequencies:
    """No rotation, for queries that only grow."""
    return np.zeros(rope.dim // 2), 1.0


_FREQUENCIES: dict[str, Callable[[Rope, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "proportional": _proportional,
    "none": _none,
}


def inverse_frequencies(rope: Rope, length: int) -> Frequencies:
    """Angle per position of each pair of dimensions, for a sequence of ``length`` tokens.

    Returns
    -------
    frequencies : float64 ``[dim / 2]``, radians per position
    attention_scaling : float
        Factor of cosine and sine.
    """
    return _FREQUENCIES[rope.scaling["rope_type"]](rope, length)


class RotaryEmbedding:
    """Cosines and sines that rotate queries and keys.

    Parameters
    ----------
    rope : Rope
    place : Place
        Place of the tables.
    """

    def __init__(self, rope: Rope, place: Place = HOST) -> None:
        self._rope = rope
        self._place = place
        self._length = 0
        self._tables: tuple[Any, Any]
        self._query_tables: tuple[Any, Any]

    def tables(self, length: int) -> tuple[Any, Any]:
        """Cosine and sine at positions ``0 .. length - 1``, float32 ``[length, dim / 2]``.

        The tables of the last length are kept, since all blocks use the same.
        """
        self._make(length)
        return self._tables

    def query_tables(self, length: int) -> tuple[Any, Any]:
        """Return the tables of queries, the same as those of keys unless queries grow."""
        self._make(length)
        return self._query_tables

    def still(self, dim: int) -> RotaryEmbedding | None:
        """Return tables that scale `dim` unrotated dimensions of growing queries; None without growth."""
        if self._rope.growth is None:
            return None
        own = self._rope._replace(scaling={"rope_type": "none"}, dim=dim)
        return RotaryEmbedding(own, self._place)

    def _make(self, length: int) -> None:
        if length == self._length:
            return
        frequencies, scaling = inverse_frequencies(self._rope, length)
        positions = np.arange(length)[:, None]
        self._tables = self._query_tables = self._put(positions * frequencies, scaling)
        if self._rope.growth is not None:
            rate, period, first = self._rope.growth
            growth = 1 + rate * np.log1p((positions + first) // period)
            self._query_tables = self._put(positions * frequencies, scaling * growth)
        self._length = length

    def _put(self, angles: NDArray[np.float64], scale: Any) -> tuple[Any, Any]:
        tables = ((function(angles) * scale).astype(np.float32) for function in (np.cos, np.sin))
        cos, sin = map(self._place.put, tables)
        return cos, sin
