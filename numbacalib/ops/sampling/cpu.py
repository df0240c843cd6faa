"""CPU kernel of draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.sampling import CHOSEN, LARGEST, perturbed


def add_scores(scores: NDArray, start: int, first: int, seed: int, state: NDArray) -> None:
    """See `numbacalib.ops.sampling.add_scores`."""
    _add(len(scores), scores, start, first, seed, state)


@task_kernel
def _add(counter, scores, start, first, seed, state):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(scores):
        row = start + i
        largest, chosen = state[LARGEST, row], state[CHOSEN, row]
        for j in range(scores.shape[1]):
            own = perturbed(scores[i, j], seed, row, first + j)
            if own > largest:
                largest, chosen = own, np.float64(first + j)
        state[LARGEST, row], state[CHOSEN, row] = largest, chosen
        i = fetch_add(counter)
