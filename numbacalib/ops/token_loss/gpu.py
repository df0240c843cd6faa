"""GPU kernels of the cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.block_gpu import block_max, block_sum
from numbacalib.runtime.device import cuda
from numbacalib.runtime.launch import launch
from numbacalib.spec.decoder import capped, negative_log_likelihood, weight_of

THREADS = device.sized(256, simulated=4)
"""A power of two, for maxima and sums over a block."""


def add_scores(scores: Any, first: int, targets: Any, state: Any) -> None:
    """See `numbacalib.ops.token_loss.add_scores`."""
    launch(_add, scores.shape[0], THREADS, scores, first, targets, state)


def cap(scores: Any, limit: np.float32) -> None:
    """See `numbacalib.ops.token_loss.cap`; rows [N, V']."""
    launch(_cap, scores.shape[0], THREADS, scores, limit)


def losses(state: Any) -> Any:
    """See `numbacalib.ops.token_loss.losses`."""
    found = device.empty((state.shape[1],), np.float32)
    launch(_finish, -(-state.shape[1] // THREADS), THREADS, state, found)
    return found


@cuda.jit
def _add(scores, first, targets, state):
    """One block a row, its threads every `THREADS`-th entry."""
    parts = cuda.shared.array(THREADS, np.float32)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    columns = scores.shape[1]
    largest = state[0, i]
    for j in range(thread, columns, THREADS):
        largest = max(largest, scores[i, j])
    parts[thread] = largest
    largest = block_max(parts, thread)
    cuda.syncthreads()  # all threads have read it before it is overwritten
    total = np.float32(0)
    for j in range(thread, columns, THREADS):
        total += weight_of(scores[i, j], largest)
    parts[thread] = total
    total = block_sum(parts, thread)
    if thread == 0:
        state[1, i] = state[1, i] * weight_of(state[0, i], largest) + total
        state[0, i] = largest
        if first <= targets[i] and targets[i] < first + columns:
            state[2, i] = scores[i, targets[i] - first]


@cuda.jit
def _cap(scores, limit):
    """One block a row, its threads every `THREADS`-th entry."""
    i = np.int64(cuda.blockIdx.x)
    for j in range(cuda.threadIdx.x, scores.shape[1], THREADS):
        scores[i, j] = capped(scores[i, j], limit)


@cuda.jit
def _finish(state, found):
    """Threads: one a row."""
    i = cuda.grid(1)
    if i < found.shape[0]:
        found[i] = negative_log_likelihood(state[2, i], state[0, i], state[1, i])
