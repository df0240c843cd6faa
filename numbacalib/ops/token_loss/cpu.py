"""CPU kernels of the cross-entropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import capped, negative_log_likelihood, weight_of

RUN = 64
"""Partial maxima and sums, each over every 64th entry: they vectorize, with the same order on every
processor. A loop over a slice does so even with an exponential, where one over sums of indices does not."""


def add_scores(scores: NDArray, first: int, targets: NDArray, state: NDArray) -> None:
    """See `numbacalib.ops.token_loss.add_scores`."""
    _add(len(scores), scores, first, targets, state)


def cap(scores: NDArray, limit: np.float32) -> None:
    """See `numbacalib.ops.token_loss.cap`; rows [N, V']."""
    _cap(len(scores), scores, limit)


def losses(state: NDArray) -> NDArray:
    """See `numbacalib.ops.token_loss.losses`."""
    found = np.empty(state.shape[1], np.float32)
    _finish(len(found), state, found)
    return found


@task_kernel
def _add(counter, scores, first, targets, state):
    """Split: workers take rows."""
    rows, columns = scores.shape
    parts = np.empty(RUN, np.float32)
    i = fetch_add(counter)
    while i < rows:
        row = scores[i]
        largest = largest_of(row, state[0, i], parts)
        parts[:] = 0
        for begin in range(0, columns, RUN):
            run = row[begin : begin + RUN]
            for j in range(len(run)):
                parts[j] += weight_of(run[j], largest)
        state[1, i] = state[1, i] * weight_of(state[0, i], largest) + parts.sum()
        state[0, i] = largest
        if first <= targets[i] and targets[i] < first + columns:
            state[2, i] = row[targets[i] - first]
        i = fetch_add(counter)


@scalar
def largest_of(row, least, parts):
    """Largest entry of a row, at least `least`; `parts` [RUN] is scratch."""
    parts[:] = least
    for begin in range(0, len(row), RUN):
        run = row[begin : begin + RUN]
        for j in range(len(run)):
            parts[j] = max(parts[j], run[j])
    return parts.max()


@task_kernel
def _cap(counter, scores, limit):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(scores):
        row = scores[i]
        for j in range(len(row)):
            row[j] = capped(row[j], limit)
        i = fetch_add(counter)


@task_kernel
def _finish(counter, state, found):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(found):
        found[i] = negative_log_likelihood(state[2, i], state[0, i], state[1, i])
        i = fetch_add(counter)
