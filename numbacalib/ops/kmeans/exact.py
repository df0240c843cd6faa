"""The cuts of sorted values into clusters with the least error, where sums of the row are too coarse.

`numbacalib.ops.kmeans.cuts` computes errors of clusters from differences of sums, which lose errors that
are small beside the whole: of clusters beside an outlier, or beside one weight above all others. Here only
values are subtracted from each other, so that every error keeps its precision. It takes some milliseconds
a row.

Points are cut by plain recurrence over the clusters. The last cluster of more points begins no earlier,
so that the begins found for points further apart enclose those between (see Grønlund et al. 2017).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numbacalib.runtime.jit import scalar


class Spans(NamedTuple):
    """Mass, mean and error of points on either side of a middle, from it to each: two of them join.

    At level l a middle is every odd multiple of ``2**l``; each array is [levels, n]. Any run of points
    joins the span from its first point to a middle and the span from there to its last.
    """

    mass: Any
    reach: Any
    """Distance of the mean from the point at the middle."""
    error: Any
    gaps: Any
    """Distance of each point from the one before it, [n]."""
    levels: Any
    """Place of the highest bit of each number below 2 n."""


@scalar
def exact_cuts(places, inverse, masses, clusters):
    """Find where the clusters begin, and the last one ends: [clusters + 1].

    `places` are the points, ascending and all different, `masses` their weights, above 0. Distances
    times `inverse` are at most 1. There are more points than clusters.
    """
    count = len(places)
    spans = _spans(places, inverse, masses)
    begins = np.empty((clusters, count), np.int64)
    losses = np.empty(count)
    for last in range(count):
        losses[last] = _error_of(spans, np.int64(0), last)
    for c in range(1, clusters):
        losses = _with_one_more(spans, losses, c, count - clusters + c, begins[c])
    cuts = np.empty(clusters + 1, np.int64)
    end = count
    for c in range(clusters - 1, 0, -1):
        cuts[c + 1] = end
        end = begins[c, end - 1]
    cuts[0], cuts[1] = 0, end
    return cuts


@scalar
def _with_one_more(spans, losses, c, end, begins):
    """Find least errors of the points up to each from c to `end`, in c + 1 clusters, and last begins."""
    found = np.empty_like(losses)
    length = end - c + 1
    step = 1
    while 2 * step <= length:
        step *= 2
    while step > 0:
        for place in range(step, length + 1, 2 * step):
            last = c + place - 1
            low = begins[last - step] if place > step else c
            high = min(begins[last + step], last) if place + step <= length else last
            least, where = np.inf, low
            for begin in range(low, high + 1):
                error = losses[begin - 1] + _error_of(spans, begin, last)
                if error < least:
                    least, where = error, begin
            found[last], begins[last] = least, where
        step //= 2
    return found


@scalar
def _error_of(spans, first, last):
    """Error of a cluster of points."""
    if first == last:
        return 0.0
    level = spans.levels[first ^ last]
    middle = (last >> level) << level
    left, right = spans.mass[level, first], spans.mass[level, last]
    between = spans.reach[level, first] + spans.gaps[middle] + spans.reach[level, last]
    apart = left * (right / (left + right)) * between * between
    return spans.error[level, first] + spans.error[level, last] + apart


@scalar
def _spans(places, inverse, masses):
    count = len(places)
    gaps, levels = np.zeros(count), np.zeros(2 * count, np.int64)
    for j in range(1, count):
        gaps[j] = (places[j] - places[j - 1]) * inverse
    for number in range(2, 2 * count):
        levels[number] = levels[number // 2] + 1
    shape = (levels[count - 1] + 1, count)
    spans = Spans(np.empty(shape), np.empty(shape), np.empty(shape), gaps, levels)
    for level in range(shape[0]):
        half = 1 << level
        for middle in range(half, count, 2 * half):
            _grow(
                spans, level, places, inverse, masses, middle - 1, middle - half - 1, np.int64(-1)
            )
            _grow(
                spans,
                level,
                places,
                inverse,
                masses,
                middle,
                min(middle + half, count),
                np.int64(1),
            )
    return spans


@scalar
def _grow(spans, level, places, inverse, masses, first, stop, step):
    """Add points from the middle outwards. `ahead` is the distance of the next one from the mean."""
    mass = reach = error = ahead = 0.0
    before = first
    for j in range(first, stop, step):
        ahead += abs(places[j] - places[before]) * inverse
        total = mass + masses[j]
        kept, added = mass / total, masses[j] / total
        error += masses[j] * kept * ahead * ahead
        ahead *= kept
        reach = reach * kept + abs(places[j] - places[first]) * inverse * added
        mass, before = total, j
        spans.mass[level, j], spans.reach[level, j] = mass, reach
        spans.error[level, j] = error
