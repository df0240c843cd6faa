"""Losses of two models on the same tokens, and the divergence of one's predictions from the other's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from numbacalib.models import Decoder
from numbacalib.ops.divergence import add_scores, divergences, new_state
from numbacalib.ops.matrix import to_host


def compare(
    original: Decoder, states: Any, other: Decoder, other_states: Any, tokens: ArrayLike
) -> tuple[NDArray[np.floating], ...]:
    """Compare two models' predictions of each token after the first of its sequence.

    Logits are computed tile by tile, once for all three results.

    Parameters
    ----------
    original, other : Decoder
        With the same vocabulary, at the same place.
    states, other_states : float32 [S, T, hidden_size]
        After their last blocks, of the same tokens.
    tokens : integer [S, T]

    Returns
    -------
    tuple of arrays [S, T - 1]
        Losses of the other model and of the original, float32, and the divergence of the other from the
        original, float64; in nats.
    """
    sums = original.loss_sums(states, tokens), other.loss_sums(other_states, tokens)
    found: dict[int, Any] = {}
    tiles = zip(original.score_tiles(states), other.score_tiles(other_states), strict=True)
    for (start, first, p), (_, _, q) in tiles:
        sums[0].add(start, first, p)
        sums[1].add(start, first, q)
        if start not in found:
            found[start] = new_state(len(p), p)
        add_scores(p, q, found[start])
    kl = np.concatenate([to_host(divergences(state)) for state in found.values()])
    return sums[1].losses(), sums[0].losses(), kl.reshape(states.shape[:-1])[..., :-1]
