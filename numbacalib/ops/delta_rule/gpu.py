"""GPU kernel of the gated delta rule: a memory in shared memory, without tensor cores."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.launch import launch
from numbacalib.spec.delta_rule import correction, decay_of, rate_of

COLUMNS = device.sized(32, simulated=4)
"""Columns of a memory in a block: they do not depend on each other."""


def delta_rule(
    queries: Any,
    keys: Any,
    values: Any,
    decays: Any,
    rates: Any,
    slopes: Any,
    biases: Any,
    corrects: bool,
) -> Any:
    """See `numbacalib.ops.delta_rule.delta_rule`."""
    found = device.empty(values.shape, values.dtype)
    sequences, _, heads, width = values.shape
    grid = -(-width // COLUMNS), heads, sequences
    arrays = queries, keys, carrier(values), decays, rates, slopes, biases, carrier(found)
    launch(_kernel(keys.shape[3], corrects), grid, COLUMNS, *arrays)
    return found


@functools.cache
def _kernel(size: int, corrects: bool) -> Any:
    @cuda.jit
    def run(queries, keys, values, decays, rates, slopes, biases, found):
        """One block a run of columns of the memory of a head and a sequence, one thread a column."""
        memory = cuda.shared.array((size, COLUMNS), np.float32)
        key = cuda.shared.array(size, np.float32)
        query = cuda.shared.array(size, np.float32)
        j, head, s = cuda.threadIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        column = cuda.blockIdx.x * COLUMNS + j
        source = head // (values.shape[2] // keys.shape[2])
        for i in range(size):
            memory[i, j] = np.float32(0)
        for t in range(values.shape[1]):
            cuda.syncthreads()
            for i in range(j, size, COLUMNS):
                key[i], query[i] = keys[s, t, source, i], queries[s, t, source, i]
            cuda.syncthreads()
            if column < values.shape[3]:
                decay = decay_of(decays[s, t, head], slopes[head], biases[head])
                known = np.float32(0)
                for i in range(size):
                    kept = memory[i, j] * decay
                    memory[i, j] = kept
                    known += kept * key[i]
                value = np.float32(widen(values[s, t, head, column]))
                before = known if corrects else np.float32(0)
                rate = rate_of(rates[s, t, head], biases[head], corrects)
                written = correction(value, before, rate)
                read = np.float32(0)
                for i in range(size):
                    kept = memory[i, j] + key[i] * written
                    memory[i, j] = kept
                    read += kept * query[i]
                found[s, t, head, column] = narrow(read, found[s, t, head, column])

    return run
