"""CPU kernels of the divergence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import weight_of
from numbacalib.spec.divergence import LARGEST_P, LARGEST_Q, PULL, TOTAL_P, TOTAL_Q, divergence

LANES = 16
"""Partial maxima and sums, each over every 16th entry: see `numbacalib.ops.rms_norm.cpu`."""


def add_scores(p: NDArray, q: NDArray, state: NDArray) -> None:
    """See `numbacalib.ops.divergence.add_scores`."""
    _add(len(p), p, q, state)


def divergences(state: NDArray) -> NDArray:
    """See `numbacalib.ops.divergence.divergences`."""
    found = np.empty(state.shape[1])
    _finish(len(found), state, found)
    return found


@task_kernel
def _add(counter, p, q, state):
    """Split: workers take rows."""
    columns = p.shape[1]
    whole = columns // LANES * LANES
    lanes = np.empty((3, LANES))
    i = fetch_add(counter)
    while i < len(p):
        own, other, sums = p[i], q[i], state[:, i]
        largest_p = _largest(own, np.float32(sums[LARGEST_P]))
        largest_q = _largest(other, np.float32(sums[LARGEST_Q]))
        lanes[:] = 0
        for begin in range(0, whole, LANES):
            for lane in range(LANES):
                _add_entry(
                    own[begin + lane], other[begin + lane], largest_p, largest_q, lanes, lane
                )
        for j in range(whole, columns):
            _add_entry(own[j], other[j], largest_p, largest_q, lanes, j - whole)
        shrink_p = np.float64(weight_of(np.float32(sums[LARGEST_P]), largest_p))
        shrink_q = np.float64(weight_of(np.float32(sums[LARGEST_Q]), largest_q))
        sums[TOTAL_P] = sums[TOTAL_P] * shrink_p + lanes[0].sum()
        sums[TOTAL_Q] = sums[TOTAL_Q] * shrink_q + lanes[1].sum()
        sums[PULL] = sums[PULL] * shrink_p + lanes[2].sum()
        sums[LARGEST_P], sums[LARGEST_Q] = largest_p, largest_q
        i = fetch_add(counter)


@scalar
def _add_entry(p, q, largest_p, largest_q, lanes, lane):
    weight = np.float64(weight_of(p, largest_p))
    lanes[0, lane] += weight
    lanes[1, lane] += np.float64(weight_of(q, largest_q))
    lanes[2, lane] += weight * (np.float64(p) - np.float64(q))


@scalar
def _largest(row, least):
    """Largest entry of a row, at least `least`."""
    parts = np.full(LANES, least)
    whole = len(row) // LANES * LANES
    for begin in range(0, whole, LANES):
        for lane in range(LANES):
            parts[lane] = max(parts[lane], row[begin + lane])
    for j in range(whole, len(row)):
        parts[j - whole] = max(parts[j - whole], row[j])
    return parts.max()


@task_kernel
def _finish(counter, state, found):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(found):
        largest = state[LARGEST_P, i], state[LARGEST_Q, i]
        found[i] = divergence(largest, (state[TOTAL_P, i], state[TOTAL_Q, i]), state[PULL, i])
        i = fetch_add(counter)
