"""GPU kernels of the divergence."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.block_gpu import largest_of_block, sum_of_block
from numbacalib.runtime.device import cuda
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import weight_of
from numbacalib.spec.divergence import LARGEST_P, LARGEST_Q, PULL, TOTAL_P, TOTAL_Q, divergence

THREADS = device.sized(256, simulated=4)
"""A power of two, for maxima and sums over a block."""


def add_scores(p: Any, q: Any, state: Any) -> None:
    """See `numbacalib.ops.divergence.add_scores`."""
    launch(_add, p.shape[0], THREADS, p, q, state)


def divergences(state: Any) -> Any:
    """See `numbacalib.ops.divergence.divergences`."""
    found = device.empty((state.shape[1],), np.float64)
    launch(_finish, -(-state.shape[1] // THREADS), THREADS, state, found)
    return found


@cuda.jit
def _add(p, q, state):
    """One block a row, its threads every `THREADS`-th entry."""
    parts = cuda.shared.array(THREADS, np.float64)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    before_p, before_q = np.float32(state[LARGEST_P, i]), np.float32(state[LARGEST_Q, i])
    largest_p, largest_q = before_p, before_q
    for j in range(thread, p.shape[1], THREADS):
        largest_p, largest_q = max(largest_p, p[i, j]), max(largest_q, q[i, j])
    largest_p = np.float32(largest_of_block(parts, largest_p, thread))
    largest_q = np.float32(largest_of_block(parts, largest_q, thread))
    total_p = total_q = pull = np.float64(0)
    for j in range(thread, p.shape[1], THREADS):
        weight = np.float64(weight_of(p[i, j], largest_p))
        total_p += weight
        total_q += np.float64(weight_of(q[i, j], largest_q))
        pull += weight * (np.float64(p[i, j]) - np.float64(q[i, j]))
    total_p = sum_of_block(parts, total_p, thread)
    total_q = sum_of_block(parts, total_q, thread)
    pull = sum_of_block(parts, pull, thread)
    if thread == 0:
        shrink_p = np.float64(weight_of(before_p, largest_p))
        state[TOTAL_P, i] = state[TOTAL_P, i] * shrink_p + total_p
        state[TOTAL_Q, i] = state[TOTAL_Q, i] * np.float64(weight_of(before_q, largest_q)) + total_q
        state[PULL, i] = state[PULL, i] * shrink_p + pull
        state[LARGEST_P, i], state[LARGEST_Q, i] = largest_p, largest_q


@cuda.jit
def _finish(state, found):
    """Threads: one a row."""
    i = cuda.grid(1)
    if i < found.shape[0]:
        largest = state[LARGEST_P, i], state[LARGEST_Q, i]
        found[i] = divergence(largest, (state[TOTAL_P, i], state[TOTAL_Q, i]), state[PULL, i])
