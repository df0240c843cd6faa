"""Cross-entropy of the next tokens, summed over tiles of a vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.matrix import from_host, to_host
from numbacalib.ops.token_loss import add_scores, losses
from numbacalib.runtime.array import Array
from numbacalib.spec.decoder import LOWEST


class LossSums:
    """Running softmax of each state's logits, whose tiles come in any order.

    Parameters
    ----------
    tokens : int64 array [..., T]
    rows : int
        States of a tile.
    like : array
        The sums are where it is.
    """

    def __init__(self, tokens: NDArray[np.int64], rows: int, like: Array) -> None:
        self._shape = tokens.shape
        # the last token of a sequence has no target
        targets = np.roll(tokens, -1, axis=-1)
        targets[..., -1] = -1
        targets = targets.ravel()
        self._tiles = {}
        for start in range(0, len(targets), rows):
            wanted = targets[start : start + rows]
            state = np.zeros((3, len(wanted)), np.float32)
            state[0] = LOWEST
            self._tiles[start] = from_host(wanted, like), from_host(state, like)

    def add(self, start: int, first: int, scores: Array) -> None:
        """Add the logits of the states from `start` on, of the vocabulary entries from `first` on."""
        wanted, state = self._tiles[start]
        add_scores(scores, first, wanted, state)

    def losses(self) -> NDArray[np.float32]:
        """Negative log likelihood of each token after the first of its sequence, [..., T - 1]."""
        found = np.concatenate([to_host(losses(state)) for _, state in self._tiles.values()])
        return found.reshape(self._shape)[..., :-1]
