"""GPU kernel of draws."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.block_gpu import largest_of_block
from numbacalib.runtime.device import cuda
from numbacalib.runtime.launch import launch
from numbacalib.spec.sampling import CHOSEN, LARGEST, perturbed

THREADS = device.sized(256, simulated=4)
"""A power of two, for maxima over a block."""


def add_scores(scores: Any, start: int, first: int, seed: int, state: Any) -> None:
    """See `numbacalib.ops.sampling.add_scores`."""
    launch(_add, scores.shape[0], THREADS, scores, start, first, seed, state)


@cuda.jit
def _add(scores, start, first, seed, state):
    """One block a row, its threads every `THREADS`-th entry."""
    parts = cuda.shared.array(THREADS, np.float64)
    i, thread = np.int64(cuda.blockIdx.x), cuda.threadIdx.x
    row = start + i
    largest, chosen = state[LARGEST, row], state[CHOSEN, row]
    for j in range(thread, scores.shape[1], THREADS):
        own = perturbed(scores[i, j], seed, row, first + j)
        if own > largest:
            largest, chosen = own, np.float64(first + j)
    most = largest_of_block(parts, largest, thread)
    # of equal scores the first entry, as on the CPU
    chosen = -largest_of_block(parts, -chosen if largest == most else -np.inf, thread)
    if thread == 0:
        state[LARGEST, row], state[CHOSEN, row] = most, chosen
