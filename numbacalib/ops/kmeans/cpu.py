"""CPU kernel of optimal k-means in one dimension: the best cuts of each row's sorted values.

The sorted points 0 to n are cut into clusters; the error of the cluster from point i to j is
``(Q_j - Q_i) - (S_j - S_i)^2 / (W_j - W_i)`` of the sums of ``w``, ``w x`` and ``w x^2`` of the points
before i and j. This error is Monge: two clusters that cross lose no more than two that nest. So
(Aggarwal, Schieber and Tokuyama 1994):

- The least error falls ever more slowly as clusters are added. So cuts that are best when each cluster
  costs a `penalty` are the best into as many clusters as they have, and the penalty rules that number.
- Of two cuts that are both best at one penalty, with fewer and with more clusters than wanted, the
  beginning of one and the end of the other are best, too.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view

DIGIT = 11
"""Bits that are sorted by at a time: their counts fit the first-level cache."""
LARGEST_KEY = float(2 ** (2 * DIGIT) - 1)
INDEX_BITS = 63 - 2 * DIGIT
"""Bits of a sorted word that hold an index, below its key."""
LONGEST = 64
"""Points whose clusters' begins are searched for together."""
GUESSES = 4
"""Penalties that are guessed before the two cuts that enclose the number of clusters tell the next."""


def kmeans_rows(
    matrix: NDArray, clusters: int, importance: NDArray | None
) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.kmeans.kmeans_rows`."""
    dtype = checks.result_dtype(matrix)
    if importance is None:
        importance = np.ones((1, matrix.shape[1]), dtype)
    codes = np.empty(matrix.shape, np.uint8)
    centroids = np.empty((len(matrix), clusters), dtype)
    _cluster_rows(rows_view(carrier(matrix)), rows_view(importance), codes, centroids)
    return codes, centroids


@kernel
def _cluster_rows(matrix, importance, codes, centroids):
    """Split: one task a row."""
    rows, columns = codes.shape
    for i in prange(rows):
        values = np.empty(columns, np.float64)
        weights = np.empty(columns, np.float64)
        for j in range(columns):
            values[j] = widen(matrix[i, j])
            weights[j] = importance[min(np.int64(i), len(importance) - 1), j]
        order = _ascending(values)
        _find_centroids(values, weights, order, centroids[i])
        _assign(values, order, centroids[i], codes[i])


@scalar
def _ascending(values):
    """Return the indices that sort finite values.

    By 22 bits of where each lies between the least and the largest, one digit after the other, then
    what these bits do not tell apart by its values.
    """
    low = values.min()
    span = values.max() - low
    words, sorted_words = np.empty(len(values), np.int64), np.empty(len(values), np.int64)
    starts = np.zeros((2, (1 << DIGIT) + 1), np.int64)
    for j in range(len(values)):
        share = (values[j] - low) / span * LARGEST_KEY
        # whatever overflows, or is 0 / 0, is among the largest
        key = np.int64(share) if share < LARGEST_KEY else np.int64(LARGEST_KEY)
        words[j] = key << INDEX_BITS | j
        starts[0, (key & ((1 << DIGIT) - 1)) + 1] += 1
        starts[1, (key >> DIGIT) + 1] += 1
    for digit in range(2):
        for value in range(1 << DIGIT):
            starts[digit, value + 1] += starts[digit, value]
        for word in words:
            bucket = (word >> (INDEX_BITS + digit * DIGIT)) & ((1 << DIGIT) - 1)
            sorted_words[starts[digit, bucket]] = word
            starts[digit, bucket] += 1
        words, sorted_words = sorted_words, words
    order = words & ((1 << INDEX_BITS) - 1)
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
def _find_centroids(values, weights, order, centroids):
    points, shares, mass = _distinct(values, weights, order)
    count, clusters = len(points), len(centroids)
    if count <= clusters:
        for c in range(clusters):
            centroids[c] = points[min(c, count - 1)]
        return
    cuts = _best_cuts(points, shares, mass, clusters)
    for c in range(clusters):
        begin, end = cuts[c], cuts[c + 1]
        members = shares[begin:end]
        offsets = points[begin:end] - points[begin]
        centroids[c] = points[begin] + np.sum(members * offsets) / np.sum(members)


@scalar
def _distinct(values, weights, order):
    """Distinct values that weigh something, their weights, and the sums [n + 1] of the first n weights.

    A weight that is lost in float64 beside those before it counts as 0: sums rise strictly.
    """
    largest = weights.max()
    points = np.empty(len(values))
    shares = np.empty(len(values))
    mass = np.zeros(len(values) + 1)
    count, total = 0, 0.0
    for j in order:
        weight = weights[j] / largest if largest > 0 else 1.0
        if total + weight > total:
            total += weight
            if count == 0 or values[j] > points[count - 1]:
                points[count] = values[j]
                shares[count] = 0
                count += 1
            shares[count - 1] += weight
            mass[count] = total
    return points[:count], shares[:count], mass[: count + 1]


@scalar
def _best_cuts(points, shares, mass, clusters):
    """Where the clusters with the least error begin, and the last one ends: [clusters + 1].

    `few` and `many` are best cuts into fewer and into more clusters than wanted. The penalty at which
    both lose alike leads between them, or to no better cuts: then both are best at it. Until there
    are two such cuts, penalties are guessed: one cluster more saves about the third power of one
    cluster's share.
    """
    count = len(points)
    few, many = np.array([0, count]), np.arange(count + 1)
    if clusters == 1:
        return few
    offsets = points - np.sum(points * shares) / mass[count]  # the sums cancel least about the mean
    offsets /= max(-offsets[0], offsets[-1])
    sums = _sums(offsets, shares, mass)
    least, begins = np.zeros(count + 1), np.zeros(count + 1, np.int64)
    guess, guesses = _first_penalty(offsets, mass, clusters), 0
    while True:
        enclosed = guesses == GUESSES or (len(few) > 2 and len(many) <= count)
        if enclosed:
            saved = _error(sums, few) - _error(sums, many)
            penalty = saved / (len(many) - len(few))
        else:
            penalty = guess
            guesses += 1
        _penalized(sums, penalty, least, begins)
        cuts = _path(begins)
        found = len(cuts) - 1
        if found == clusters:
            return cuts
        if len(few) < len(cuts) < len(many):
            if found < clusters:
                few = cuts
            else:
                many = cuts
        elif enclosed:
            return _spliced(few, many, clusters)
        guess *= (found / clusters) ** 3


@scalar
def _sums(offsets, shares, mass):
    """Rows ``W``, ``S`` and ``Q`` [3, n + 1] of the module's text."""
    sums = np.zeros((3, len(mass)))
    sums[0] = mass
    for j in range(len(offsets)):
        moment = shares[j] * offsets[j]
        sums[1, j + 1] = sums[1, j] + moment
        sums[2, j + 1] = sums[2, j] + moment * offsets[j]
    return sums


@scalar
def _first_penalty(offsets, mass, clusters):
    """Guess the penalty that leads to `clusters`.

    Many clusters of a density rho leave ``(integral of rho^(1/3))^3 / 12 / clusters^2`` (Panter and
    Dite 1951); the penalty is what one cluster more saves. The density is that of runs of points.
    """
    last = len(offsets) - 1
    runs = -(-last // 16)
    integral = 0.0
    for run in range(runs):
        begin, end = run * last // runs, (run + 1) * last // runs
        weight, width = mass[end] - mass[begin], offsets[end] - offsets[begin]
        integral += (weight * width * width) ** (1 / 3)
    return (integral / clusters) ** 3 / 6


@scalar
def _penalized(sums, penalty, least, begins):
    """Cut the points best when each cluster costs `penalty`.

    Sets `least` [n + 1], the least error and penalties of the first j points, and `begins` [n + 1],
    where the last cluster of these cuts begins. Both never fall. So points are solved in blocks, the
    last one first, then those in steps that halve: begins found before enclose the begins to try.
    A block must not reach so far that a cluster could begin within it.
    """
    count = len(begins) - 1
    solved, length = 0, 1
    while solved < count:
        last = min(solved + length, count)
        stop = _find_begin(sums, least, begins, last, begins[solved], solved)
        if stop > solved and last > solved + 1:
            length //= 2
            continue
        step = 1
        while 2 * step < last - solved:
            step *= 2
        while step > 0:
            for j in range(solved + step, last, 2 * step):
                _find_begin(sums, least, begins, j, begins[j - step], begins[min(j + step, last)])
            step //= 2
        for j in range(solved + 1, last + 1):
            least[j] += penalty
        solved = last
        length = min(LONGEST, max(1, solved - stop))


@scalar
def _find_begin(sums, least, begins, j, low, high):
    """Find the begin in ``[low, high]`` of the last cluster of the first j points; the first of equals.

    Returns where the search ended: from there on, all that comes before the cluster loses more.
    """
    mass, moment, energy = sums[0], sums[1], sums[2]
    best, lowest = low, np.inf
    i = low
    while i <= high and least[i] < lowest:
        part = moment[j] - moment[i]
        total = least[i] + ((energy[j] - energy[i]) - part * part / (mass[j] - mass[i]))
        if total < lowest:
            best, lowest = i, total
        i += 1
    begins[j], least[j] = best, lowest
    return i


@scalar
def _path(begins):
    """Cuts [clusters + 1] of all the points, from where the last cluster of the first j begins."""
    count = len(begins) - 1
    clusters, end = 0, count
    while end > 0:
        end = begins[end]
        clusters += 1
    cuts = np.empty(clusters + 1, np.int64)
    end = count
    for c in range(clusters, -1, -1):
        cuts[c] = end
        end = begins[end]
    return cuts


@scalar
def _error(sums, cuts):
    """Error of cuts, less what all cuts share: it serves for differences."""
    total = 0.0
    for c in range(len(cuts) - 1):
        part = sums[1, cuts[c + 1]] - sums[1, cuts[c]]
        total -= part * part / (sums[0, cuts[c + 1]] - sums[0, cuts[c]])
    return total


@scalar
def _spliced(few, many, clusters):
    """The beginning of `many` and the end of `few`, so that there are `clusters`.

    They are joined where a cluster of `few` contains that of `many` which is `ahead` of it: the
    clusters of the two joints cross where these nest, and so lose no more.
    """
    ahead = clusters - (len(few) - 1)
    t = 0
    while many[t + 1 + ahead] > few[t + 1]:
        t += 1
    return np.concatenate((many[: t + ahead + 1], few[t + 1 :]))


@scalar
def _assign(values, order, centroids, codes):
    """Code of the nearest centroid: in rising order of the values it never falls."""
    code = 0
    for j in order:
        while code + 1 < len(centroids) and (
            abs(values[j] - centroids[code + 1]) < abs(values[j] - centroids[code])
        ):
            code += 1
        codes[j] = code
