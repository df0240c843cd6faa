"""CPU kernel of attention: BLAS for the products of a tile, one task on each thread.

Tiles of scores are transposed, [keys, queries], so that the sums and maxima of a softmax, over keys, are
vector operations over queries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.blas import routine, single_threaded
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.tasks import NORMAL, call_fortran, fetch_add
from numbacalib.spec.decoder import LOWEST, capped, first_key, weight_of

TILE = 64
"""Positions of a task, whose queries are those of all heads that share the keys."""
KEYS = 256
"""Keys that are processed together: their scores stay in the second-level cache."""
TRANSPOSED = np.uint8(ord("T"))


def attention(
    queries: NDArray,
    keys: NDArray,
    values: NDArray,
    window: int,
    scale: float,
    cap: float,
    sinks: NDArray | None,
) -> NDArray:
    """See `numbacalib.ops.attention.attention`; a window of 0 means none."""
    context = np.empty((*queries.shape[:3], values.shape[3]), queries.dtype)
    gemm = routine("gemm", queries.dtype)
    begin = np.zeros((2, queries.shape[2]), np.float32)
    begin[0] = LOWEST if sinks is None else sinks
    begin[1] = sinks is not None
    options = window, np.float32(scale), np.float32(cap)
    with single_threaded():
        tasks = -(-queries.shape[1] // TILE) * len(queries) * keys.shape[2]
        _attend(tasks, gemm, (queries, keys, values), options, begin, context)
    return context


@task_kernel
def _attend(counter, gemm, states, options, begin, context):
    """Split: workers take tiles of positions of a sequence and a key head, the longest first."""
    (queries, keys, values), (window, scale, cap) = states, options
    sequences, length, heads, size = queries.shape
    pairs = sequences * keys.shape[2]
    group = heads // keys.shape[2]
    tiles = -(-length // TILE)
    scores_memory = np.empty(KEYS * TILE * group, np.float32)
    width = values.shape[3]
    sums_memory = np.empty(width * TILE * group, np.float32)
    state_memory = np.empty(3 * TILE * group, np.float32)
    tile_memory = np.empty((TILE * group, size), np.float32)
    task = fetch_add(counter)
    while task < tiles * pairs:
        start = (tiles - 1 - task // pairs) * TILE
        stop = min(start + TILE, length)
        s, head = divmod(task % pairs, keys.shape[2])
        count = (stop - start) * group
        tile, state = tile_memory[:count], state_memory[: 3 * count].reshape(3, count)
        sums = sums_memory[: width * count].reshape(width, count)
        _take_queries(queries[s], start, head, group, scale, tile)
        _begin(begin, head, group, state)
        sums[...] = np.float32(0)
        for first in range(first_key(start, window), stop, KEYS):
            last = min(first + KEYS, stop)
            scores = scores_memory[: (last - first) * count].reshape(last - first, count)
            here, there = keys[s, first:, head], values[s, first:, head]
            _multiply(gemm, tile, here, keys.shape[2] * size, scores)
            _weigh(scores, first, start, group, window, cap, state, sums)
            _add_values(gemm, scores, there, values.shape[2] * width, sums)
        _give(sums, state[1], start, head, group, context[s])
        task = fetch_add(counter)


@scalar
def _take_queries(queries, start, head, group, scale, tile):
    """Copy the queries of a tile, scaled: position by position, the heads of the group."""
    for c in range(len(tile)):
        given = queries[start + c // group, head * group + c % group]
        for d in range(len(given)):
            tile[c, d] = given[d] * scale


@scalar
def _begin(begin, head, group, state):
    """Start each softmax with the largest score and the sum of its head's sink, or of no scores."""
    for c in range(state.shape[1]):
        state[0, c] = begin[0, head * group + c % group]
        state[1, c] = begin[1, head * group + c % group]


@scalar
def _multiply(gemm, tile, keys, step, scores):
    """``scores = keys tile^T``. Column-major BLAS sees the transposes."""
    count, size = tile.shape
    one, zero = np.float32(1), np.float32(0)
    call_fortran(
        gemm,
        (
            TRANSPOSED, NORMAL, count, len(scores), size, one, tile, size, keys, step, zero, scores,
            count,
        ),
    )  # fmt: skip


@scalar
def _add_values(gemm, scores, values, step, sums):
    """``sums += values^T scores``. Column-major BLAS sees the transposes."""
    size, count = sums.shape
    one = np.float32(1)
    call_fortran(
        gemm,
        (
            NORMAL, TRANSPOSED, count, size, len(scores), one, scores, count, values, step, one, sums,
            count,
        ),
    )  # fmt: skip


@scalar
def _weigh(scores, first, start, group, window, cap, state, sums):
    """Turn scores into weights, and rescale the sums so far to the new largest scores.

    Key ``first + i`` is seen by a run of the tile's queries.
    """
    largest, totals, factors = state[0], state[1], state[2]
    count = len(largest)
    for c in range(count):
        factors[c] = largest[c]
    for i in range(len(scores)):
        low, high = _seen(first + i, start, group, window, count)
        seen, tops = scores[i, low:high], largest[low:high]
        if cap > np.float32(0):
            for c in range(len(seen)):
                seen[c] = capped(seen[c], cap)
        for c in range(len(seen)):
            tops[c] = max(tops[c], seen[c])
    for c in range(count):
        factors[c] = weight_of(factors[c], largest[c])
        totals[c] *= factors[c]
    for d in range(len(sums)):
        row = sums[d]
        for c in range(count):
            row[c] *= factors[c]
    for i in range(len(scores)):
        row = scores[i]
        low, high = _seen(first + i, start, group, window, count)
        row[:low] = np.float32(0)
        row[high:] = np.float32(0)
        seen, tops, sums_seen = row[low:high], largest[low:high], totals[low:high]
        for c in range(len(seen)):
            seen[c] = weight_of(seen[c], tops[c])
            sums_seen[c] += seen[c]


@scalar
def _seen(key, start, group, window, count):
    """Range of a tile's queries that see a key: from its own position to the window's end."""
    low = max(key - start, 0) * group
    high = min((key + window - start) * group, count) if window > 0 else count
    return min(low, high), high


@scalar
def _give(sums, totals, start, head, group, context):
    """Write the outputs of a tile's queries."""
    for c in range(len(totals)):
        taken = context[start + c // group, head * group + c % group]
        inverse = np.float32(1) / totals[c]
        for d in range(len(taken)):
            taken[d] = sums[d, c] * inverse
