"""CPU kernel of the gated delta rule.

The columns of a memory do not depend on each other, so that a few at a time stay in the first-level cache.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.half import carrier, narrow, widen
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.delta_rule import correction, decay_of, rate_of

COLUMNS = 32
"""Columns of a memory in a task."""


def delta_rule(
    queries: NDArray,
    keys: NDArray,
    values: NDArray,
    decays: NDArray,
    rates: NDArray,
    slopes: NDArray,
    biases: NDArray,
    corrects: bool,
) -> NDArray:
    """See `numbacalib.ops.delta_rule.delta_rule`."""
    found = np.empty(values.shape, values.dtype)
    sequences, _, heads, width = values.shape
    tokens, head_wise = (queries, keys, carrier(values), decays, rates), (slopes, biases)
    tasks = sequences * heads * -(-width // COLUMNS)
    _run(tasks, tokens, head_wise, corrects, carrier(found))
    return found


@task_kernel
def _run(counter, tokens, head_wise, corrects, found):
    """Split: workers take runs of columns of the memory of a sequence and a head."""
    (queries, keys, values, decays, rates), (slopes, biases) = tokens, head_wise
    sequences, length, heads, width = values.shape
    size, group = keys.shape[3], heads // keys.shape[2]
    runs = -(-width // COLUMNS)
    memory = np.empty((size, COLUMNS), np.float32)
    known, read = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
    task = fetch_add(counter)
    while task < sequences * heads * runs:
        s, rest = divmod(task, heads * runs)
        head, first = rest // runs, rest % runs * COLUMNS
        last = min(first + COLUMNS, width)
        memory[...] = np.float32(0)
        for t in range(length):
            key, query = keys[s, t, head // group], queries[s, t, head // group]
            decay = decay_of(decays[s, t, head], slopes[head], biases[head])
            _recall(memory, decay, key, known)
            rate = rate_of(rates[s, t, head], biases[head], corrects)
            given = values[s, t, head, first:last]
            for j in range(last - first):
                before = known[j] if corrects else np.float32(0)
                known[j] = correction(np.float32(widen(given[j])), before, rate)
            _write_and_read(memory, key, known, query, read)
            taken = found[s, t, head, first:last]
            for j in range(last - first):
                taken[j] = narrow(read[j], taken[j])
        task = fetch_add(counter)


@scalar
def _recall(memory, decay, key, known):
    """Decay the memory, and set `known` to its value for a key."""
    for j in range(COLUMNS):
        known[j] = np.float32(0)
    for i in range(len(memory)):
        row, k = memory[i], key[i]
        for j in range(COLUMNS):
            row[j] *= decay
            known[j] += row[j] * k


@scalar
def _write_and_read(memory, key, written, query, read):
    """Write for a key, then set `read` to the memory's value for a query."""
    for j in range(COLUMNS):
        read[j] = np.float32(0)
    for i in range(len(memory)):
        row, k, q = memory[i], key[i], query[i]
        for j in range(COLUMNS):
            row[j] += k * written[j]
            read[j] += row[j] * q
