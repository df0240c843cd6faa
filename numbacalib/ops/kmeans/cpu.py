"""CPU kernel of optimal k-means in one dimension: dynamic programming over each row's sorted values.

The error of a cluster is ``sum w x^2 - (sum w x)^2 / sum w``. The first term is the same for any
clustering, so what is maximised is the sum of ``(sum w x)^2 / sum w``, the clusters' gain: differences
of two prefix sums, the row's `mass` and `moment`.
"""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime import checks
from numbacalib.runtime.half import carrier, widen
from numbacalib.runtime.jit import kernel, scalar
from numbacalib.runtime.strides import rows_view


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
        order = np.argsort(values)
        _find_centroids(values, weights, order, centroids[i])
        _assign(values, order, centroids[i], codes[i])


@scalar
def _find_centroids(values, weights, order, centroids):
    points, shares, mass = _distinct(values, weights, order)
    count, clusters = len(points), len(centroids)
    if count <= clusters:
        for c in range(clusters):
            centroids[c] = points[min(c, count - 1)]
        return
    mean = np.sum(points * shares) / mass[count]
    moment = np.zeros(count + 1)
    for j in range(count):
        # about the mean, where the squares of the sums cancel least
        moment[j + 1] = moment[j] + shares[j] * (points[j] - mean)
    begins = _last_begins(mass, moment, clusters)
    end = count
    for c in range(clusters - 1, -1, -1):
        begin = begins[c, end]
        members = shares[begin:end]
        offsets = points[begin:end] - points[begin]
        centroids[c] = points[begin] + np.sum(members * offsets) / np.sum(members)
        end = begin


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
def _last_begins(mass, moment, clusters):
    """Where the last cluster begins when the first j points are cut best into c + 1: [clusters, n + 1].

    Of the last c only j = n is filled in. The begins never fall as j or c grows: for each c, points
    are taken in steps that halve, so that those solved before enclose the begins to try, n a step
    and n log n in all.
    """
    count = len(mass) - 1
    begins = np.zeros((clusters, count + 1), np.int32)
    gain = np.zeros(count + 1)
    for j in range(1, count + 1):
        gain[j] = moment[j] * moment[j] / mass[j]
    for c in range(1, clusters):
        more = np.zeros(count + 1)
        before = count - 1 if c == clusters - 1 else c  # all the points are wanted at last
        step = 1
        while step < count - before:
            step *= 2
        while step > 0:
            for j in range(before + step, count + 1, 2 * step):
                low = max(c, begins[c - 1, j])
                if j - step > before:
                    low = max(low, begins[c, j - step])
                high = j - 1
                if j + step <= count:
                    high = min(high, begins[c, j + step])
                begins[c, j], more[j] = _best_begin(gain, mass, moment, j, low, max(low, high))
            step //= 2
        gain = more
    return begins


@scalar
def _best_begin(gain, mass, moment, j, low, high):
    """Begin in ``[low, high]`` of the last of the clusters of the first j points; the first of equals."""
    best, most = low, -np.inf
    for i in range(low, high + 1):
        part = moment[j] - moment[i]
        total = gain[i] + part * part / (mass[j] - mass[i])
        if total > most:
            best, most = i, total
    return best, most


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
