"""Causal grouped-query attention over whole sequences, in NumPy."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["causal_attention"]

# Query rows at a time: large enough for an efficient product, small enough that the scores of one
# tile stay in the cache and that little of the causal upper triangle is computed.
_TILE = 64


def causal_attention(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    window: int | None = None,
) -> NDArray[np.float32]:
    """Softmax attention of each position to itself and those before it.

    Parameters
    ----------
    queries : float32 ``[T, num_heads, head_dim]``
        Already rotated, not yet scaled.
    keys, values : float32 ``[T, num_kv_heads, head_dim]``
        Query head ``h`` reads key head ``h // (num_heads / num_kv_heads)``.
    window : int, optional
        Attend to the last ``window`` positions only, the token's own included.

    Returns
    -------
    float32 ``[T, num_heads, head_dim]``
    """
    length, num_heads, head_dim = queries.shape
    group = num_heads // keys.shape[1]
    context = np.empty_like(queries)
    scale = np.float32(1 / math.sqrt(head_dim))
    # One buffer for the scores of every tile: fresh pages cost more than the products on them.
    buffer = np.empty(min(_TILE, length) * group * length, dtype=np.float32)
    for start in range(0, length, _TILE):
        stop = min(start + _TILE, length)
        first = 0 if window is None else max(0, start - window + 1)
        for kv_head in range(keys.shape[1]):
            heads = slice(kv_head * group, (kv_head + 1) * group)
            # The heads that share keys are stacked into one product, position by position.
            tile = (queries[start:stop, heads] * scale).reshape(-1, head_dim)
            scores = buffer[: len(tile) * (stop - first)].reshape(len(tile), -1)
            np.matmul(tile, keys[first:stop, kv_head].T, out=scores)
            _mask(scores.reshape(stop - start, group, stop - first), start - first, window)
            sums = _exponentials(scores)
            result = scores @ values[first:stop, kv_head]
            result /= sums
            context[start:stop, heads] = result.reshape(stop - start, group, head_dim)
    return context


def _mask(scores: NDArray[np.float32], offset: int, window: int | None) -> None:
    """Set what must not be seen to -inf; row ``i`` is the query at column ``offset + i``.

    Only the columns where something is hidden are touched: the tile's own positions, and the first
    ones where the window has moved past them.
    """
    rows = scores.shape[0]
    row = np.arange(rows)[:, None, None]
    later = scores[..., offset:]
    np.copyto(later, -np.inf, where=np.arange(rows) > row)
    if window is not None and offset + rows > window:
        passed = scores[..., : offset + rows - window]
        np.copyto(passed, -np.inf, where=np.arange(passed.shape[-1]) <= row + offset - window)


def _exponentials(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace each row by ``exp(row - max(row))``; return the rows' sums ``[rows, 1]``."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return np.asarray(scores.sum(axis=-1, keepdims=True))
