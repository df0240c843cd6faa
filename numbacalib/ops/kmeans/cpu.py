"""CPU kernel of optimal k-means in one dimension: the best cuts of each row's sorted values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from numbacalib.ops.kmeans.cuts import PADDING, Sums, best_cuts
from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import claim

DIGIT = 11
"""Bits that are sorted by at a time: their counts fit the first-level cache."""
LARGEST_KEY = float(2 ** (2 * DIGIT) - 1)
ONE = np.uint64(1)
"""Unsigned indices cannot count from the end, and need no test of whether they do."""
LARGEST_DIGIT = np.uint64((1 << DIGIT) - 1)
INDEX_BITS = np.uint64(63 - 2 * DIGIT)
"""Bits of a sorted word that hold an index, below its key."""
LARGEST_INDEX = np.uint64((1 << int(INDEX_BITS)) - 1)


class Memory(NamedTuple):
    """What a worker needs for a row of n values, kept for the next: memory given back is slow to get."""

    values: Any
    weights: Any
    words: Any
    """uint64 [2, n]."""
    starts: Any
    offsets: Any
    firsts: Any
    masses: Any
    """This and what follows [n + 1], and `PADDING`."""
    moments: Any
    energies: Any
    rest: Any
    begins: Any


def kmeans_rows(
    matrix: NDArray, clusters: int, importance: NDArray | None
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.kmeans.kmeans_rows`."""
    dtype = checks.result_dtype(matrix)
    if importance is None:
        importance = np.ones((1, matrix.shape[1]), dtype)
    codes = np.empty(matrix.shape, np.uint8)
    centroids = np.empty((len(matrix), clusters), dtype)
    arrays = rows_view(carrier(matrix)), rows_view(importance), codes, centroids
    _cluster_rows(*arrays, np.zeros(1, np.int64), min(len(matrix), get_num_threads()))
    return codes, centroids


@kernel
def _cluster_rows(matrix, importance, codes, centroids, counter, workers):
    """Split: workers, each of which claims rows from the counter."""
    rows, columns = codes.shape
    for _ in prange(workers):
        memory = _memory(columns)
        i = claim(counter)
        while i < rows:
            factors = importance[min(i, len(importance) - 1)]
            _cluster_row(matrix[i], factors, codes[i], centroids[i], memory)
            i = claim(counter)


@scalar
def _memory(columns):
    padded = columns + 1 + PADDING
    return Memory(
        np.empty(columns),
        np.empty(columns),
        np.empty((2, columns), np.uint64),
        np.empty((2, 1 << DIGIT), np.uint64),
        np.empty(columns),
        np.empty(columns + 1, np.int64),
        np.empty(padded),
        np.empty(padded),
        np.empty(padded),
        np.empty(padded),
        np.empty(padded, np.int64),
    )


@scalar
def _cluster_row(row, importance, codes, centroids, memory):
    values, weights = memory.values, memory.weights
    low, high, largest = np.inf, -np.inf, 0.0
    for j in range(len(codes)):
        value, weight = float(widen(row[j])), float(importance[j])
        low, high, largest = min(low, value), max(high, value), max(largest, weight)
        values[j], weights[j] = value, weight
    for j in range(len(codes)):
        weights[j] = weights[j] / largest if largest > 0 else 1.0
    order = _ascending(values, low, high - low, memory)
    scale = 1.0 if high - low < np.inf else 0.5  # differences must not overflow
    firsts, sums = _distinct(values, weights, order, scale, memory)
    _find_centroids(values, weights, order, scale, firsts, sums, centroids, memory)
    _assign(values, order, centroids, codes)


@scalar
def _ascending(values, low, span, memory):
    """Return the indices that sort finite values from `low` to ``low + span``.

    By 22 bits of where each lies between the least and the largest, one digit after the other, then
    what these bits do not tell apart by its values.
    """
    words, others, starts = memory.words[0], memory.words[1], memory.starts
    scale = LARGEST_KEY / span
    for j in range(len(values)):
        share = (values[j] - low) * scale
        # whatever overflows, or is 0 times infinity, is among the largest
        key = np.int32(share if share < LARGEST_KEY else LARGEST_KEY)
        words[j] = np.uint64(key) << INDEX_BITS | np.uint64(j)
    _count(words, starts)
    for digit in range(2):
        begins, shift = starts[digit], INDEX_BITS + np.uint64(digit * DIGIT)
        for word in words:
            bucket = (word >> shift) & LARGEST_DIGIT
            others[begins[bucket]] = word
            begins[bucket] += ONE
        words, others = others, words
    order = others
    for j in range(len(words)):
        order[j] = words[j] & LARGEST_INDEX
    end = 0
    for j in range(1, len(words)):
        if (words[j] ^ words[j - 1]) <= LARGEST_INDEX and j >= end:
            end = j + 1
            while end < len(words) and (words[end] ^ words[j]) <= LARGEST_INDEX:
                end += 1
            _sort_run(values, order[j - 1 : end])
    return order


@scalar
def _count(words, starts):
    """Where the words of each value of a digit begin, once they are sorted by it."""
    starts[:] = 0
    for word in words:
        starts[0, (word >> INDEX_BITS) & LARGEST_DIGIT] += ONE
        starts[1, word >> (INDEX_BITS + np.uint64(DIGIT))] += ONE
    low, high = np.uint64(0), np.uint64(0)
    for value in range(1 << DIGIT):
        count_low, count_high = starts[0, value], starts[1, value]
        starts[0, value], starts[1, value] = low, high
        low += count_low
        high += count_high


@scalar
def _sort_run(values, order):
    """Sort indices by their values: insertion over gaps that shrink (Shell 1959)."""
    gap = 1
    while gap < len(order) // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, len(order)):
            index, j = order[i], i
            while j >= gap and values[order[j - gap]] > values[index]:
                order[j] = order[j - gap]
                j -= gap
            order[j] = index
        gap //= 3


@scalar
def _distinct(values, weights, order, scale, memory):
    """Where in `order` distinct values that weigh something begin, [n + 1], and the sums up to each.

    A weight that is lost in float64 beside those before it counts as 0: sums rise strictly. They are
    of distances from the middle value, where they cancel least, as fractions of the widest distance;
    `scale` keeps these from overflowing.
    """
    firsts, offsets = memory.firsts, memory.offsets
    masses, moments, energies = memory.masses, memory.moments, memory.energies
    middle = scale * values[order[len(order) // 2]]
    widest = scale * values[order[-1]] - scale * values[order[0]]
    for j in range(len(values)):
        offsets[j] = (scale * values[j] - middle) / widest
    count, mass, moment, energy, last = np.uint64(0), 0.0, 0.0, 0.0, -np.inf
    masses[0], moments[0], energies[0] = 0, 0, 0
    for place in range(len(order)):
        j = order[place]
        value, weight, offset = values[j], weights[j], offsets[j]
        if mass + weight > mass:
            mass += weight
            moment += weight * offset
            energy += weight * offset * offset
            if value > last:
                last = value
                firsts[count] = place
                count += ONE
            masses[count], moments[count], energies[count] = mass, moment, energy
    firsts[count] = len(order)
    end = np.int64(count) + 1
    return firsts[:end], Sums(masses[:end], moments[:end], energies[:end])


@scalar
def _find_centroids(values, weights, order, scale, firsts, sums, centroids, memory):
    """Means of each cluster's values; some stand twice if there are more clusters than points."""
    count, clusters = len(firsts) - 1, len(centroids)
    if count <= clusters:
        for c in range(clusters):
            centroids[c] = values[order[firsts[min(c, count - 1)]]]
        return
    cuts = best_cuts(sums, clusters, memory)
    for c in range(clusters):
        members = order[firsts[cuts[c]] : firsts[cuts[c + 1]]]
        first = scale * values[members[0]]
        moment, mass = 0.0, 0.0
        for j in members:
            moment += weights[j] * (scale * values[j] - first)
            mass += weights[j]
        centroids[c] = (first + moment / mass) / scale


@scalar
def _assign(values, order, centroids, codes):
    """Code of the nearest centroid: in rising order of the values it never falls."""
    begin = 0
    for code in range(len(centroids)):
        end = len(order)
        if code + 1 < len(centroids):
            low = begin
            while low < end:
                middle = (low + end) // 2
                value = values[order[middle]]
                if abs(value - centroids[code + 1]) < abs(value - centroids[code]):
                    end = middle
                else:
                    low = middle + 1
        for j in range(begin, end):
            codes[order[j]] = code
        begin = end
