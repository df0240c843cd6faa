"""Kullback-Leibler divergence of a model's predictions from another's, token by token.

``KL(p || q) = sum_v p_v (log p_v - log q_v)`` of the next token's probabilities, with p the original's.
The models give the logits in tiles; sums over the tiles are computed on the host, in float64.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray

from numbacalib.models import Decoder
from numbacalib.ops.matrix import to_host

ROWS = 64
"""Tokens whose logits a thread takes at a time."""


def divergences(
    original: Decoder, states: Any, other: Decoder, other_states: Any
) -> NDArray[np.float64]:
    """KL of each token's prediction, in nats.

    Parameters
    ----------
    original, other : Decoder
        With the same vocabulary, at the same place.
    states, other_states : float32 [..., hidden_size]
        After their last blocks, of the same tokens.

    Returns
    -------
    float64 [...]
    """
    shape = states.shape[:-1]
    sums = np.zeros((5, int(np.prod(shape))))
    sums[:2] = -np.inf
    tiles = zip(original.score_tiles(states), other.score_tiles(other_states), strict=True)
    with ThreadPoolExecutor(get_num_threads()) as threads:
        for (start, _, p), (_, _, q) in tiles:
            add_tile(threads, p, q, sums[:, start : start + len(p)])
    top_p, top_q, sum_p, sum_q, difference = sums
    found = difference / sum_p - (top_p + np.log(sum_p)) + (top_q + np.log(sum_q))
    return np.maximum(found, 0.0).reshape(shape)  # negative only by rounding


def add_tile(threads: ThreadPoolExecutor, p: Any, q: Any, sums: NDArray[np.float64]) -> None:
    """Add logits [N, v] of a part of the vocabulary, at any place, to sums [5, N].

    Threads share the rows.
    """
    own, others = to_host(p), to_host(q)
    runs = [slice(first, first + ROWS) for first in range(0, len(own), ROWS)]
    calls = [threads.submit(_add_rows, own[run], others[run], sums[:, run]) for run in runs]
    for call in calls:
        call.result()


def _add_rows(p: NDArray[np.float32], q: NDArray[np.float32], sums: NDArray[np.float64]) -> None:
    """Add logits [n, v] to sums that are relative to the largest so far.

    The sums are those largest logits of both, ``sum e^p``, ``sum e^q`` and ``sum e^p (p - q)``.
    """
    p = p.astype(np.float64)
    tops = np.maximum(sums[:2], [p.max(axis=1), q.max(axis=1)])
    shrink_p, shrink_q = np.exp(sums[:2] - tops)
    sums[:2] = tops
    weights = np.exp(p - tops[0][:, None])
    sums[2] = sums[2] * shrink_p + weights.sum(axis=1)
    sums[3] = sums[3] * shrink_q + np.exp(q - tops[1][:, None]).sum(axis=1)
    sums[4] = sums[4] * shrink_p + np.einsum("nv,nv->n", weights, p - q)
