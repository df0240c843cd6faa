"""Cross-entropy over a vocabulary that comes in parts."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.ops.token_loss import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.token_loss import gpu

    return gpu


def add_scores(scores: Any, first: int, targets: Any, state: Any) -> None:
    """Add a part of the vocabulary to the softmax of each row, by its running maximum and sum.

    Parameters
    ----------
    scores : float32 array [N, V'], C-contiguous
        Logits of the entries from `first` on.
    first : int
    targets : int64 array [N]
    state : float32 array [3, N]
        Largest score, sum of weights, score of the target; before the first part `LOWEST`, 0 and 0.
    """
    with call(cpu, _gpu, scores=scores, targets=targets, state=state) as (kernels, *arrays):
        kernels.add_scores(arrays[0], first, *arrays[1:])


def cap(scores: Any, limit: float) -> None:
    """Replace scores, float32 [..., V'], C-contiguous, with ``limit * tanh(scores / limit)``."""
    with call(cpu, _gpu, scores=scores) as (kernels, scores):
        kernels.cap(checks.rows_of(scores), np.float32(limit))


def losses(state: Any) -> Any:
    """Negative log likelihoods of the targets, float32 [N], once all parts were added."""
    with call(cpu, _gpu, state=state) as (kernels, state):
        return kernels.losses(state)
