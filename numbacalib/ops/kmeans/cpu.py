"""CPU kernel of optimal k-means in one dimension: the best cuts of each row's sorted values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from numbacalib.ops.kmeans.cuts import best_cuts
from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.lanes import LANES
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import claim

DIGIT = 11
"""Bits that are sorted by at a time: their counts fit the first-level cache."""
LARGEST_KEY = float(2 ** (2 * DIGIT) - 1)
INDEX_BITS = 63 - 2 * DIGIT
"""Bits of a sorted word that hold an index, below its key."""


class Memory(NamedTuple):
    """What a worker needs for a row of n values, kept for the next: memory given back is slow to get."""

    values: Any
    weights: Any
    words: Any
    """int64 [2, n]."""
    starts: Any
    points: Any
    shares: Any
    sums: Any
    """[3, n + 1]."""
    least: Any
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
    return Memory(
        np.empty(columns),
        np.empty(columns),
        np.empty((2, columns), np.int64),
        np.empty((2, 1 << DIGIT), np.int64),
        np.empty(columns),
        np.empty(columns),
        np.empty((3, columns + 1 + LANES)),
        np.empty(columns + 1 + LANES),
        np.empty(columns + 1 + LANES),
        np.empty(columns + 1 + LANES, np.int64),
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
    points, shares, sums = _distinct(values, weights, order, scale, memory)
    _find_centroids(points, shares, sums, centroids, memory)
    _assign(values, order, centroids, codes)


@scalar
def _ascending(values, low, span, memory):
    """Return the indices that sort finite values from `low` to ``low + span``.

    By 22 bits of where each lies between the least and the largest, one digit after the other, then
    what these bits do not tell apart by its values.
    """
    words, sorted_words, starts = memory.words[0], memory.words[1], memory.starts
    starts[:] = 0
    scale = LARGEST_KEY / span
    for j in range(len(values)):
        share = (values[j] - low) * scale
        # whatever overflows, or is 0 times infinity, is among the largest
        key = np.int64(share) if share < LARGEST_KEY else np.int64(LARGEST_KEY)
        words[j] = key << INDEX_BITS | j
        starts[0, key & ((1 << DIGIT) - 1)] += 1
        starts[1, key >> DIGIT] += 1
    for digit in range(2):
        start = 0
        for value in range(1 << DIGIT):
            count = starts[digit, value]
            starts[digit, value] = start
            start += count
        for word in words:
            bucket = (word >> (INDEX_BITS + digit * DIGIT)) & ((1 << DIGIT) - 1)
            sorted_words[starts[digit, bucket]] = word
            starts[digit, bucket] += 1
        words, sorted_words = sorted_words, words
    order = sorted_words
    order[:] = words & ((1 << INDEX_BITS) - 1)
    begin = 0
    for j in range(1, len(words) + 1):
        if j == len(words) or words[j] >> INDEX_BITS != words[begin] >> INDEX_BITS:
            if j - begin > 1:
                _sort_run(values, order[begin:j])
            begin = j
    return order


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
    """Distinct values that weigh something, their weights, and the sums of `cuts` up to each.

    A weight that is lost in float64 beside those before it counts as 0: sums rise strictly. They are
    of distances from the middle value, where they cancel least, as fractions of the widest distance;
    `scale` keeps these from overflowing.
    """
    points, shares, sums = memory.points, memory.shares, memory.sums
    middle = scale * values[order[len(order) // 2]]
    widest = scale * values[order[-1]] - scale * values[order[0]]
    count, total, moment, energy, share, last = 0, 0.0, 0.0, 0.0, 0.0, -np.inf
    sums[:, 0] = 0
    for j in order:
        value, weight = values[j], weights[j]
        if total + weight > total:
            offset = (scale * value - middle) / widest
            total += weight
            moment += weight * offset
            energy += weight * offset * offset
            if value > last:
                last, share = value, 0.0
                points[count] = value
                count += 1
            share += weight
            shares[count - 1] = share
            sums[0, count], sums[1, count], sums[2, count] = total, moment, energy
    return points[:count], shares[:count], sums[:, : count + 1]


@scalar
def _find_centroids(points, shares, sums, centroids, memory):
    """Means of the points of each cluster; some stand twice if there are more clusters than points."""
    count, clusters = len(points), len(centroids)
    if count <= clusters:
        for c in range(clusters):
            centroids[c] = points[min(c, count - 1)]
        return
    cuts = best_cuts(sums, clusters, memory)
    for c in range(clusters):
        first = points[cuts[c]]
        moment, total = 0.0, 0.0
        for j in range(cuts[c], cuts[c + 1]):
            moment += shares[j] * (points[j] - first)
            total += shares[j]
        centroids[c] = first + moment / total


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
