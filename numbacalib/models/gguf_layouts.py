"""Matrices that GGUF files hold in another way than Hugging Face's: rows in another order, or in two parts.

As llama.cpp's converter stores them, https://github.com/ggml-org/llama.cpp/tree/master/conversion.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.models.config import ModelConfig

__all__ = ["LATENT_PARTS", "joined_latent", "latent_parts", "neighbours", "row_order"]

LATENT_PARTS = "attn_k_b", "attn_v_b"
"""GGUF's names of the two parts of what makes keys and values of a latent vector."""
_IN_BLOCK = re.compile(r"model\.layers\.\d+\.(.+)\.(?:weight|bias)")


def row_order(config: ModelConfig, name: str, *, paired: bool) -> NDArray[np.int64] | None:
    """Return which of Hugging Face's rows each row of GGUF's tensor is; None where they are the same.

    Parameters
    ----------
    config : ModelConfig
    name : str
        Hugging Face's, of a weight or a bias.
    paired : bool
        Whether rows of queries and keys stand in the order of neighbours that turn together.
    """
    match = _IN_BLOCK.fullmatch(name)
    linears, own = config.architecture.linears, match[1] if match else ""
    if own and own == linears.get("query_key_value"):
        return _apart(config)
    heads = {linears.get("query"): config.num_heads, linears.get("key"): config.num_kv_heads}
    if own not in heads:
        return None
    rows = np.arange(heads[own] * config.head_dim)
    if config.architecture.interleaved and config.architecture.sections:
        return _halves(rows.reshape(-1, config.head_dim), config.rotary_dim)
    return neighbours(rows, heads[own]) if paired else None


def neighbours(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorder rows of queries or keys from halves of a head that turn together to neighbours that do.

    GGUF's llama convention turns rows ``(2i, 2i + 1)``, Hugging Face's ``(i, i + head_dim / 2)``.
    """
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _halves(heads: NDArray[np.int64], turning: int) -> NDArray[np.int64]:
    """Undo `neighbours` of the first rows of each head: an image's positions turn halves in llama.cpp."""
    turned = heads[:, :turning]
    return np.hstack([turned[:, ::2], turned[:, 1::2], heads[:, turning:]]).ravel()


def _apart(config: ModelConfig) -> NDArray[np.int64]:
    """All queries, then all keys, then all values, of a layer that has each head's together."""
    kv, size = config.num_kv_heads, config.head_dim
    rows = np.arange((config.num_heads + 2 * kv) * size).reshape(kv, -1, size)
    return np.concatenate([rows[:, :-2].ravel(), rows[:, -2].ravel(), rows[:, -1].ravel()])


def latent_parts(config: ModelConfig, weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Take what makes keys and values of a latent vector apart: ``[H, L, D]`` and ``[H, V, L]``.

    The weight is ``[H (D + V), L]``, with L the length of the latent vector and D that of a head of keys
    without what turns. llama.cpp multiplies queries by the first.
    """
    assert config.latent is not None
    heads = weight.reshape(config.num_heads, -1, weight.shape[1])
    still = heads.shape[1] - config.latent.value_dim
    return np.ascontiguousarray(heads[:, :still].swapaxes(1, 2)), heads[:, still:]


def joined_latent(keys: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Undo `latent_parts`."""
    return np.concatenate([keys.swapaxes(1, 2), values], axis=1).reshape(-1, values.shape[2])
