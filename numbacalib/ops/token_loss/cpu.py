"""CPU kernels of the cross-entropy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import capped, negative_log_likelihood, weight_of

LANES = 16
"""Partial maxima and sums, each over every 16th entry: see `numbacalib.ops.rms_norm.cpu`."""


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
    whole = columns // LANES * LANES
    i = fetch_add(counter)
    while i < rows:
        row = scores[i]
        parts = np.full(LANES, state[0, i], np.float32)
        for begin in range(0, whole, LANES):
            for lane in range(LANES):
                parts[lane] = max(parts[lane], row[begin + lane])
        for j in range(whole, columns):
            parts[j - whole] = max(parts[j - whole], row[j])
        largest = parts[0]
        for lane in range(1, LANES):
            largest = max(largest, parts[lane])
        sums = np.zeros(LANES, np.float32)
        for begin in range(0, whole, LANES):
            for lane in range(LANES):
                sums[lane] += weight_of(row[begin + lane], largest)
        for j in range(whole, columns):
            sums[j - whole] += weight_of(row[j], largest)
        total = state[1, i] * weight_of(state[0, i], largest)
        for lane in range(LANES):
            total += sums[lane]
        state[0, i], state[1, i] = largest, total
        if first <= targets[i] and targets[i] < first + columns:
            state[2, i] = row[targets[i] - first]
        i = fetch_add(counter)


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
