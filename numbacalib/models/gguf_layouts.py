"""Tensors that GGUF files store in another row or column order than Hugging Face's, or in two parts.

Source: llama.cpp's converter, https://github.com/ggml-org/llama.cpp/tree/master/conversion.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig

__all__ = ["Tiles", "column_tiles", "joined_latent", "joined_rows", "latent_parts", "neighbours"]
__all__ += ["part_rows", "row_order"]

_IN_BLOCK = re.compile(r"model\.layers\.\d+\.(.+?)(?:\.weight|\.bias)?")


class Tiles(NamedTuple):
    """Order of a gated delta net's value heads: GGUF does not keep those of a key head together.

    It stores the first value head of each key head, then the second of each, and so on.
    """

    heads: int
    """Number of key heads."""
    share: int
    """Value heads of each key head."""
    size: int
    """Length of a value head."""

    def order(self, size: int) -> NDArray[np.int64]:
        """Return Hugging Face's index of each GGUF run of `size` numbers, a divisor of a head's length."""
        if self.size % size:
            raise ValueError(f"groups: expected a divisor of heads of {self.size}, got {size}")
        runs = np.arange(self.heads * self.share * (self.size // size))
        return runs.reshape(self.heads, self.share, -1).swapaxes(0, 1).ravel()


def row_order(config: ModelConfig, name: str, *, paired: bool) -> NDArray[np.int64] | None:
    """Return Hugging Face's index of each row of GGUF's tensor; None if the order is the same.

    Parameters
    ----------
    config : ModelConfig
    name : str
        Hugging Face's name of a weight or a bias.
    paired : bool
        Whether rows of queries and keys are ordered for interleaved rotary embedding.
    """
    match = _IN_BLOCK.fullmatch(name)
    linears, own = config.architecture.linears, match[1] if match else ""
    if own and own == linears.get("query_key_value"):
        return _apart(config)
    if (order := _delta_order(config, own)) is not None:
        return order
    heads = {linears.get("query"): config.num_heads, linears.get("key"): config.num_kv_heads}
    if own not in heads:
        return None
    rows = np.arange(heads[own] * config.head_dim)
    if config.architecture.interleaved and config.architecture.sections:
        return _halves(rows.reshape(-1, config.head_dim), config.rotary_dim)
    return neighbours(rows, heads[own]) if paired else None


def neighbours(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows of queries or keys from half-split to interleaved rotary pairs.

    GGUF's llama convention rotates rows ``(2i, 2i + 1)``, Hugging Face's ``(i, i + head_dim / 2)``.
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _halves(heads: NDArray[np.int64], turning: int) -> NDArray[np.int64]:
    """Undo `neighbours` for the rotated rows of each head: llama.cpp's M-RoPE pairs halves."""
    turned = heads[:, :turning]
    return np.hstack([turned[:, ::2], turned[:, 1::2], heads[:, turning:]]).ravel()


def _apart(config: ModelConfig) -> NDArray[np.int64]:
    """Return the order of all query, key and value rows, for a layer that stores them head by head."""
    kv, size = config.num_kv_heads, config.head_dim
    rows = np.arange((config.num_heads + 2 * kv) * size).reshape(kv, -1, size)
    return np.concatenate([rows[:, :-2].ravel(), rows[:, -2].ravel(), rows[:, -1].ravel()])


def _tiles(config: ModelConfig, size: int) -> Tiles | None:
    """Return the order of value heads of this length; None if it is Hugging Face's.

    Layers that store queries, keys, values and gates by key head keep Hugging Face's order.
    """
    delta, names = config.delta, config.architecture.delta
    if delta is None or names is None or "open" not in names.linears:
        return None
    share = delta.value_heads // delta.key_heads
    return Tiles(delta.key_heads, share, size) if share > 1 else None


def column_tiles(config: ModelConfig, name: str) -> Tiles | None:
    """Return the order of a layer's columns; None if it is Hugging Face's.

    Parameters
    ----------
    config : ModelConfig
    name : str
        Hugging Face's name of a weight.
    """
    match, names = _IN_BLOCK.fullmatch(name), config.architecture.delta
    if match is None or names is None or match[1] != names.linears["output"]:
        return None
    assert config.delta is not None
    return _tiles(config, config.delta.value_dim)


def _delta_order(config: ModelConfig, own: str) -> NDArray[np.int64] | None:
    """Return the row order of a gated delta net's tensors that have rows by value head, else None."""
    delta, names = config.delta, config.architecture.delta
    if delta is None or names is None or (tiles := _tiles(config, delta.value_dim)) is None:
        return None
    if own == names.linears["open"]:
        return tiles.order(1)
    if own in (names.rates, names.decays, names.slopes, names.biases):
        return tiles._replace(size=1).order(1)
    if own not in (names.linears["value"], names.convolution):
        return None
    return np.concatenate([np.arange(2 * delta.keys), 2 * delta.keys + tiles.order(1)])


def part_rows(config: ModelConfig, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of a matrix that each of its two stored parts has.

    The matrix has, for each key head, its queries, keys, values and gates; the first part has all queries,
    then all keys, then all values, the second the gates. A fused MLP layer has all gates, then all ups.
    """
    delta = config.delta
    if delta is None:
        gates, ups = np.split(np.arange(count), 2)
        return gates, ups
    widths = np.array([delta.keys, delta.keys, delta.values, delta.values]) // delta.key_heads
    rows = np.split(np.arange(count).reshape(delta.key_heads, -1), widths.cumsum()[:-1], axis=1)
    queries, keys, values, gates = (each.ravel() for each in rows)
    return np.concatenate([queries, keys, values]), gates


def joined_rows(config: ModelConfig, first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Undo `part_rows`."""
    delta = config.delta
    rows = (2 * delta.keys + delta.values, delta.values) if delta else (len(first), len(first))
    if (len(first), len(second)) != rows:
        raise ValueError(f"rows: expected {rows} in two parts, got {len(first)} and {len(second)}")
    both = np.concatenate([first, second])
    result = np.empty_like(both)
    result[np.concatenate(part_rows(config, len(both)))] = both
    return result


def latent_parts(config: ModelConfig, weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Split the up-projection of a latent vector into those of keys and values, [H, L, D] and [H, V, L].

    The weight is ``[H (D + V), L]``, with L the length of the latent vector and D that of a key head's
    part that is not rotated. llama.cpp multiplies queries by the first.
    """
    assert config.latent is not None
    heads = weight.reshape(config.num_heads, -1, weight.shape[1])
    still = heads.shape[1] - config.latent.value_dim
    return np.ascontiguousarray(heads[:, :still].swapaxes(1, 2)), heads[:, still:]


def joined_latent(keys: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Undo `latent_parts`."""
    return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, values.shape[2])
