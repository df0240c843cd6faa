"""CPU kernel of optimal k-means in one dimension: the best cuts of each row's sorted values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numbacalib.ops.kmeans.cuts import PADDING, Sums, are_precise, best_cuts
from numbacalib.ops.kmeans.exact import exact_cuts
from numbacalib.runtime import checks
from numbacalib.runtime.jit import scalar, task_kernel
from numbacalib.runtime.strides import rows_view
from numbacalib.runtime.tasks import fetch_add

DIGIT = 10
"""Bits of a digit of the radix sort: its counts fit the first-level cache."""
ONE = np.uint64(1)
"""Unsigned, since indices that cannot be negative need no test of whether they are."""
LARGEST_DIGIT = np.uint64((1 << DIGIT) - 1)
KEY_BITS = np.uint64(2 * DIGIT)
"""A word's lowest bits, which are its key; the index is above them."""
KEY = np.uint64((1 << 2 * DIGIT) - 1)
LARGEST_KEY = float(KEY)
SHORT = 1 << (32 - 2 * DIGIT)
"""Most values of a row whose sorted words fit 32 bits."""
TINY = 2.0**-960
"""Below it, an inverse may not be finite."""
STRIP = 32
"""Words that are compared with those before them at once."""
CHUNK = 1 << 22
"""Values that are converted to the centroids' dtype at a time: kernels have one form for each of those."""


class Memory(NamedTuple):
    """Buffers of a worker for a row of n values, kept for the next row, since allocation is slow."""

    values: Any
    """Like `weights`, of the dtype of centroids."""
    weights: Any
    words: Any
    """uint32 or uint64 [2, n]: an index, and a key of two digits below it."""
    starts: Any
    firsts: Any
    masses: Any
    """Like those that follow, [n + 1] and `PADDING`."""
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
    integer = np.dtype(f"i{dtype.itemsize}")
    word = np.dtype(np.uint32 if matrix.shape[1] <= SHORT else np.uint64)
    step = max(1, CHUNK // matrix.shape[1])
    for first in range(0, len(matrix), step):
        own = slice(first, first + step)
        values = rows_view(matrix[own].astype(dtype, copy=False))
        weights = rows_view(importance if len(importance) == 1 else importance[own])
        found = codes[own], centroids[own]
        _cluster_rows(len(values), values, weights, found, integer, word)
    return codes, centroids


@task_kernel
def _cluster_rows(counter, matrix, importance, found, integer, word):
    """Split: workers take rows."""
    codes, centroids = found
    rows, columns = codes.shape
    memory = _memory(columns, centroids.dtype, word)
    i = fetch_add(counter)
    while i < rows:
        factors = importance[min(i, len(importance) - 1)]
        _cluster_row(matrix[i], factors, codes[i], centroids[i], integer, memory)
        i = fetch_add(counter)


@scalar
def _memory(columns, real, word):
    padded = columns + 1 + PADDING
    return Memory(
        np.empty(columns, real),
        np.empty(columns, real),
        np.empty((2, columns), word),
        np.empty((2, 1 << DIGIT), np.uint32),
        np.empty(columns + 1, np.int64),
        np.empty(padded),
        np.empty(padded),
        np.empty(padded),
        np.empty(padded),
        np.empty(padded, np.int64),
    )


@scalar
def _cluster_row(row, importance, codes, centroids, integer, memory):
    values, weights = memory.values, memory.weights
    for j in range(len(codes)):
        values[j], weights[j] = row[j], importance[j]
    low, high = _extremes(values, integer)
    _, largest = _extremes(weights, integer)
    if largest == 0:
        weights[:] = 1
    order = _ascending(values, low, high - low, memory)
    scale = _scale(high - low)
    share = 1 / max(largest, TINY) if largest > 0 else 1.0
    firsts, cuts = _clusters(values, weights, order, scale, share, len(centroids), memory)
    _find_centroids(values, weights, order, scale, share, firsts, cuts, centroids)
    _assign(values, order, centroids, codes)


@scalar
def _scale(span):
    """Return a factor of values that makes their differences, and the inverses of these, finite."""
    if span == np.inf:
        return 0.5
    return 1.0 if span > TINY else 1 / TINY


@scalar
def _extremes(values, integer):
    """Return the least and the largest of finite values, compared as integers, which vectorizes."""
    bits = values.view(integer)
    low = high = _turned(bits[0], bits)
    for j in range(len(bits)):
        turned = _turned(bits[j], bits)
        low, high = min(low, turned), max(high, turned)
    found = np.empty(2, values.dtype)
    ends = found.view(integer)
    ends[0], ends[1] = _turned(low, bits), _turned(high, bits)
    return float(found[0]), float(found[1])


@scalar
def _turned(bits, array):
    """Flip all bits but the sign of negative numbers, so that integers have the order of the floats."""
    sign = 8 * array.itemsize - 1
    return bits ^ ((bits >> sign) & ((1 << sign) - 1))


@scalar
def _ascending(values, low, span, memory):
    """Return the indices that sort finite values from `low` to ``low + span``.

    It is a radix sort by 20 bits of each value's position between the least and the largest; those with
    equal bits are then sorted by value.
    """
    words, others, starts = memory.words[0], memory.words[1], memory.starts
    scale = LARGEST_KEY / span
    for j in range(len(values)):
        share = (float(values[j]) - low) * scale
        # a value that overflows, or is 0 times infinity, is among the largest
        key = np.int32(share if share < LARGEST_KEY else LARGEST_KEY)
        words[j] = np.uint64(j) << KEY_BITS | np.uint64(key)
    _count(words, starts)
    for digit in range(2):
        begins, shift = starts[digit], np.uint64(digit * DIGIT)
        for word in words:
            bucket = (word >> shift) & LARGEST_DIGIT
            place = begins[bucket]
            others[place] = word
            begins[bucket] = place + ONE
        words, others = others, words
    order = others
    for j in range(len(words)):
        order[j] = words[j] >> KEY_BITS
    _sort_strips(words, values, order)
    return order


@scalar
def _count(words, starts):
    """Find the first place of the words of each value of a digit, once they are sorted by it."""
    starts[:] = 0
    for word in words:
        starts[0, word & LARGEST_DIGIT] += ONE
        starts[1, (word >> np.uint64(DIGIT)) & LARGEST_DIGIT] += ONE
    low, high = np.uint32(0), np.uint32(0)
    for value in range(1 << DIGIT):
        count_low, count_high = starts[0, value], starts[1, value]
        starts[0, value], starts[1, value] = low, high
        low += count_low
        high += count_high


@scalar
def _tied(word, other):
    """Return whether the keys of two words are equal."""
    return ((word ^ other) & KEY) == 0


@scalar
def _sort_strips(words, values, order):
    """Sort words with equal keys by their values; few strips have any."""
    end = 0
    for begin in range(1, len(words), STRIP):
        stop, ties = min(begin + STRIP, len(words)), 0
        strip, before = words[begin:stop], words[begin - 1 : stop - 1]
        for j in range(len(strip)):
            ties += _tied(strip[j], before[j])
        if ties > 0:
            end = _sort_ties(words, values, order, max(begin, end), stop)


@scalar
def _sort_ties(words, values, order, begin, stop):
    """Sort runs of equal keys whose second word is in the range; return the end of the last run."""
    end = begin
    for j in range(begin, stop):
        if _tied(words[j], words[j - 1]) and j >= end:
            end = j + 1
            while end < len(words) and _tied(words[end], words[j]):
                end += 1
            _sort_run(values, order[j - 1 : end])
    return end


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
def _clusters(values, weights, order, scale, share, clusters, memory):
    """Cut a row into clusters, by sums of the row if these are precise enough, as nearly always.

    Returns the places in `order` of distinct values of weight above 0, [n + 1], and which begin a cluster.
    """
    firsts, sums, lost = _distinct(values, weights, order, scale, share, memory)
    count = len(firsts) - 1
    if not lost:
        if count <= clusters:
            return firsts, np.arange(count + 1)
        cuts = best_cuts(sums, clusters, memory)
        if are_precise(sums, cuts):
            return firsts, cuts
    inverse = 1 / (scale * values[order[-1]] - scale * values[order[0]])
    firsts, places, masses = _points(values, weights, order, scale, share, memory.firsts)
    if len(places) <= clusters:
        return firsts, np.arange(len(places) + 1)
    return firsts, exact_cuts(places, inverse, masses, clusters)


@scalar
def _points(values, weights, order, scale, share, firsts):
    """Find the places of distinct values of weight above 0, [n + 1], the values, and their weights."""
    places, masses = np.empty(len(order)), np.empty(len(order))
    count = np.uint64(0)
    for place in range(len(order)):
        value, weight = scale * values[order[place]], share * weights[order[place]]
        if weight > 0:
            if count == 0 or value > places[count - ONE]:
                firsts[count], places[count], masses[count] = place, value, 0
                count += ONE
            masses[count - ONE] += weight
    firsts[count] = len(order)
    return firsts[: np.int64(count) + 1], places[:count], masses[:count]


@scalar
def _distinct(values, weights, order, scale, share, memory):
    """Find the places in `order` of distinct values of weight above 0, [n + 1], and the sums up to each.

    Also returns whether a weight is too small to raise the float64 sum of those before it. Sums are of
    distances from the middle value, where they cancel least, as fractions of the widest distance; `scale`
    keeps these from overflowing.
    """
    firsts, masses = memory.firsts, memory.masses
    moments, energies = memory.moments, memory.energies
    middle = scale * values[order[len(order) // 2]]
    inverse = 1 / (scale * values[order[-1]] - scale * values[order[0]])
    count, mass, moment, energy, last = np.uint64(0), 0.0, 0.0, 0.0, -np.inf
    masses[0], moments[0], energies[0] = 0, 0, 0
    lost = False
    for place in range(len(order)):
        j = order[place]
        value, weight = values[j], share * weights[j]
        offset = (scale * value - middle) * inverse
        if mass + weight > mass:
            mass += weight
            moment += weight * offset
            energy += weight * offset * offset
            if value > last:
                last = value
                firsts[count] = place
                count += ONE
            masses[count], moments[count], energies[count] = mass, moment, energy
        elif weight > 0:
            lost = True
    firsts[count] = len(order)
    end = np.int64(count) + 1
    return firsts[:end], Sums(masses[:end], moments[:end], energies[:end]), lost


@scalar
def _find_centroids(values, weights, order, scale, share, firsts, cuts, centroids):
    """Means of each cluster's values; the last is repeated if there are more clusters than points."""
    count, clusters = len(firsts) - 1, len(centroids)
    if count <= clusters:
        for c in range(clusters):
            centroids[c] = values[order[firsts[min(c, count - 1)]]]
        return
    for c in range(clusters):
        members = order[firsts[cuts[c]] : firsts[cuts[c + 1]]]
        first = scale * values[members[0]]
        moment, mass = 0.0, 0.0
        for j in members:
            weight = share * weights[j]
            moment += weight * (scale * values[j] - first)
            mass += weight
        centroids[c] = (first + moment / mass) / scale


@scalar
def _assign(values, order, centroids, codes):
    """Set codes of the nearest centroids, which never fall in ascending order of the values."""
    begin = 0
    for code in range(len(centroids)):
        end = len(order)
        if code + 1 < len(centroids):
            low = begin
            while low < end:
                middle = (low + end) // 2
                value = float(values[order[middle]])
                if abs(value - centroids[code + 1]) < abs(value - centroids[code]):
                    end = middle
                else:
                    low = middle + 1
        for j in order[begin:end]:
            codes[j] = code
        begin = end
