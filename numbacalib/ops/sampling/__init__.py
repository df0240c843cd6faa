"""Draws from the softmaxes of rows over a vocabulary that comes in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.matrix import from_host, to_host
from numbacalib.ops.sampling import cpu
from numbacalib.runtime.backend import call
from numbacalib.spec.sampling import CHOSEN, LARGEST


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.sampling import gpu

    return gpu


def new_state(rows: int, like: Any) -> Any:
    """Return the state of `rows` draws before the first part, float64 [2, rows], where `like` is."""
    state = np.zeros((2, rows))
    state[LARGEST] = -np.inf
    return from_host(state, like)


def add_scores(scores: Any, start: int, first: int, seed: int, state: Any) -> None:
    """Add a part of the vocabulary to the draws of some rows: see `numbacalib.spec.sampling`.

    Parameters
    ----------
    scores : float32 array [N, V'], C-contiguous
        Logits of the rows from `start` on, of the entries from `first` on. A NaN is never drawn.
    start, first : int
    seed : int
        From 0 on: another one gives other draws.
    state : float64 array [2, rows]
        From `new_state`; updated in place.
    """
    with call(cpu, _gpu, scores=scores, state=state) as (kernels, scores, state):
        kernels.add_scores(scores, start, first, seed, state)


def drawn(state: Any) -> NDArray[np.int32]:
    """Entries drawn, [rows], once all parts are added; 0 for a row of NaN."""
    found: NDArray[np.int32] = to_host(state)[CHOSEN].astype(np.int32)
    return found
