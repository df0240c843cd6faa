"""CPU kernels of the divergence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.token_loss.cpu import RUN, largest_of
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.decoder import weight_of
from numbacalib.spec.divergence import LARGEST_P, LARGEST_Q, PULL, TOTAL_P, TOTAL_Q, divergence


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
    parts, sums = np.empty(RUN, np.float32), np.empty((3, RUN))
    i = fetch_add(counter)
    while i < len(p):
        own, other, found = p[i], q[i], state[:, i]
        before_p, before_q = np.float32(found[LARGEST_P]), np.float32(found[LARGEST_Q])
        largest_p, largest_q = largest_of(own, before_p, parts), largest_of(other, before_q, parts)
        sums[:] = 0
        for begin in range(0, len(own), RUN):
            _add_run(
                own[begin : begin + RUN], other[begin : begin + RUN], largest_p, largest_q, sums
            )
        shrink_p = np.float64(weight_of(before_p, largest_p))
        shrink_q = np.float64(weight_of(before_q, largest_q))
        found[TOTAL_P] = found[TOTAL_P] * shrink_p + sums[0].sum()
        found[TOTAL_Q] = found[TOTAL_Q] * shrink_q + sums[1].sum()
        found[PULL] = found[PULL] * shrink_p + sums[2].sum()
        found[LARGEST_P], found[LARGEST_Q] = largest_p, largest_q
        i = fetch_add(counter)


@scalar
def _add_run(p, q, largest_p, largest_q, sums):
    """Add the weights of a run of entries, and their weighted differences, to sums [3, RUN]."""
    totals_p, totals_q, pulls = sums[0], sums[1], sums[2]
    for j in range(len(p)):
        weight = np.float64(weight_of(p[j], largest_p))
        totals_p[j] += weight
        totals_q[j] += np.float64(weight_of(q[j], largest_q))
        pulls[j] += weight * (np.float64(p[j]) - np.float64(q[j]))


@task_kernel
def _finish(counter, state, found):
    """Split: workers take rows."""
    i = fetch_add(counter)
    while i < len(found):
        largest = state[LARGEST_P, i], state[LARGEST_Q, i]
        found[i] = divergence(largest, (state[TOTAL_P, i], state[TOTAL_Q, i]), state[PULL, i])
        i = fetch_add(counter)
