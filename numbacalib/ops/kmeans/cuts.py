"""The cuts of sorted values into clusters with the least error.

The sorted points 0 to n are cut into clusters; the error of the cluster from point i to j is
``(Q_j - Q_i) - (S_j - S_i)^2 / (W_j - W_i)`` of the sums of ``w``, ``w x`` and ``w x^2`` of the points
before i and j. This error is Monge: two clusters that cross lose no more than two that nest. So
(Aggarwal, Schieber and Tokuyama 1994):

- The least error falls ever more slowly as clusters are added. So cuts that are best when each cluster
  costs a `penalty` are the best with their number of clusters, which the penalty determines.
- Of two cuts that are both best at one penalty, with fewer and with more clusters than wanted, the
  beginning of one and the end of the other, joined, are best, too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from numbacalib.runtime.jit import scalar
from numbacalib.runtime.lanes import LANES, least_quotient, least_quotients

LONGEST = LANES * LANES
"""Longest block of points that are solved together: one a lane, then as many between two lanes."""
PADDING = LONGEST
"""Padding at the end of an array, in elements, which lanes may read and write."""
GUESSES = 4
"""Most guesses of the penalty before it comes from the two cuts that enclose the number of clusters."""
COARSE = 12
"""Runs of points a cluster, between which points are cut to find the first penalty."""
TOLERANCE = 1e-5
"""Share of the error by which cuts may miss the least."""
EPSILON = 2.0**-52
SHORT = 2 * LANES
"""Longest block of points in which enclosing the begins first does not save time."""


class Sums(NamedTuple):
    """``W``, ``S`` and ``Q`` of the module's text, [n + 1], followed by `PADDING`."""

    mass: Any
    moment: Any
    energy: Any


@scalar
def best_cuts(sums, clusters, memory):
    """Find where the clusters with the least error begin, and the last one ends: [clusters + 1].

    There are more points than clusters.
    """
    count = len(sums.mass) - 1
    if clusters == 1:
        return np.array([0, count])
    penalty = _first_penalty(sums, clusters)
    runs = COARSE * clusters
    if count > 2 * runs:
        # cuts between runs of points need nearly the same penalty, at little cost
        _, penalty = _cuts_from(_thinned(sums, runs), penalty, clusters, memory)
    cuts, _ = _cuts_from(sums, penalty, clusters, memory)
    return cuts


@scalar
def are_precise(sums, cuts):
    """Return whether rounding of the sums is at most about `TOLERANCE` of the error that cuts leave.

    Differences of sums have the rounding errors of the whole sums, of distances up to 1.
    """
    count = len(sums.mass) - 1
    left = sums.energy[count] + _error(sums, cuts)
    return TOLERANCE * left > np.sqrt(count) * EPSILON * sums.mass[count]


@scalar
def _thinned(sums, runs):
    """Sums up to each of some runs of points."""
    count = len(sums.mass) - 1
    thinned = np.empty((3, runs + 1 + PADDING))
    for run in range(runs + 1):
        at = run * count // runs
        thinned[0, run], thinned[1, run] = sums.mass[at], sums.moment[at]
        thinned[2, run] = sums.energy[at]
    end = runs + 1
    return Sums(thinned[0, :end], thinned[1, :end], thinned[2, :end])


@scalar
def _first_penalty(sums, clusters):
    """Guess the penalty that leads to `clusters`.

    Many clusters of a density rho leave ``(integral of rho^(1/3))^3 / 12 / clusters^2`` (Panter and
    Dite 1951); the penalty is the error that one cluster more saves. The density is that of runs of points.
    """
    mass, moment, _ = sums
    last = len(mass) - 2
    runs = min(last, 64)
    integral, begin, offset = 0.0, 0, moment[1] / mass[1]
    for run in range(runs):
        end = (run + 1) * last // runs
        offset_there = (moment[end + 1] - moment[end]) / (mass[end + 1] - mass[end])
        width = offset_there - offset
        integral += np.cbrt((mass[end] - mass[begin]) * width * width)
        begin, offset = end, offset_there
    return (integral / clusters) ** 3 / 6


@scalar
def _cuts_from(sums, guess, clusters, memory):
    """Return the best cuts into `clusters`, and a penalty that leads to them, starting with a `guess`.

    `few` and `many` are best cuts into fewer and into more clusters than wanted. The penalty at which
    both cost the same leads between them, or to no better cuts: then both are best at it. Until there
    are two such cuts, penalties are guessed: one cluster more saves about the third power of one
    cluster's share.
    """
    count = len(sums.mass) - 1
    few, many = np.array([0, count]), np.arange(count + 1)
    guesses = 0
    while True:
        enclosed = guesses == GUESSES or (len(few) > 2 and len(many) <= count)
        if enclosed:
            saved = _error(sums, few) - _error(sums, many)
            penalty = saved / (len(many) - len(few))
        else:
            penalty = guess
            guesses += 1
        begins = _penalized(sums, penalty, memory)
        cuts = _path(begins)
        found = len(cuts) - 1
        if found == clusters:
            return cuts, penalty
        if len(few) < len(cuts) < len(many):
            if found < clusters:
                few = cuts
            else:
                many = cuts
        elif enclosed:
            return _spliced(few, many, clusters), penalty
        # a penalty that misses by one cluster is corrected by half of one
        missed = found + 0.5 if found < clusters else found - 0.5
        guess *= (missed / clusters) ** 3


@scalar
def _penalized(sums, penalty, memory):
    """Find the best cuts of the points when each cluster costs `penalty`.

    Returns the begin of the last cluster of the first j points, [n + 1]. It never falls with j, nor does
    the cost of these cuts, errors and penalties, which is the sum of `rest` and ``Q``. So points are
    solved in blocks, as if no cluster began within one. This holds for points that cost no more than the
    first and a penalty: a cluster that begins behind the first costs as much. The others are solved again.
    """
    energy, rest, begins = sums.energy, memory.rest, memory.begins
    count = len(energy) - 1
    rest[0], begins[0] = 0, 0
    solved: Any = np.int64(0)  # what it calls would be compiled again for literals
    stop: Any = np.int64(0)
    length = LANES
    while solved < count:
        last, end = min(solved + length, count), solved
        if solved - begins[solved] > LONGEST:
            stop = _stop(sums, rest, begins[solved], stop, solved, last)
            end = min(stop, solved)
        _solve_block(sums, penalty, rest, begins, solved, last, end)
        first = rest[solved + 1] + energy[solved + 1]
        more = rest[last] + energy[last] - first
        if 2 * more < penalty:
            length = min(2 * length, LONGEST)
        elif more > penalty:
            while rest[last] + energy[last] - first > penalty:
                last -= 1
            length = max(LANES, (last - solved) // LANES * LANES)
        solved = last
    return begins[: count + 1]


@scalar
def _solve_block(sums, penalty, rest, begins, solved, last, end):
    """Solve the points of a block, whose last clusters begin no later than `end`.

    A short block is solved at once; of a long one first the last point, then those `LANES` apart, then all
    that lie between two of these: begins found before enclose the begins to try.
    """
    mass, moment, _ = sums
    low, high = begins[solved], end
    long = last - solved > SHORT
    if long:
        high = least_quotient(rest, mass, moment, low, end, mass[last], moment[last])
        begins[last] = high
        at = solved + LANES
        least_quotients(rest, mass, moment, low, high, at, LANES, penalty, rest, begins)
    for j in range(solved, last, LANES):
        if long:  # read before it is written again: the next search need not wait for this one
            high = max(low, begins[min(j + LANES, last)])  # rounding may make it fall
        least_quotients(rest, mass, moment, low, high, j + 1, 1, penalty, rest, begins)
        if long:
            low = high


@scalar
def _stop(sums, rest, begin, stop, solved, last):
    """Return the end of the search for the begin of the last cluster of the first `last` points.

    From there on, the points before the cluster alone cost more than cuts whose last cluster begins as
    many points after `begin`, that of the `solved` points, as there are more points. `stop` is the end of
    the search for fewer points.
    """
    mass, moment, energy = sums
    near = min(begin + last - solved, solved)
    distance = moment[last] - moment[near]
    bound = energy[last] + rest[near] - distance * distance / (mass[last] - mass[near])
    stop = max(stop, near)
    while stop <= solved and rest[stop] + energy[stop] < bound:
        stop += 1
    return stop


@scalar
def _path(begins):
    """Cuts [clusters + 1] of all the points, from the begins of the last cluster of the first j."""
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
    """Error of cuts, less a part that all cuts share: only its differences are meaningful."""
    total = 0.0
    for c in range(len(cuts) - 1):
        begin, end = cuts[c], cuts[c + 1]
        part = sums.moment[end] - sums.moment[begin]
        total -= part * part / (sums.mass[end] - sums.mass[begin])
    return total


@scalar
def _spliced(few, many, clusters):
    """Join the beginning of `many` and the end of `few`, so that there are `clusters`.

    They are joined where a cluster of `few` contains that of `many` which is `ahead` of it: the
    clusters of the two joints cross where these nest, and so lose no more.
    """
    ahead = clusters - (len(few) - 1)
    t = 0
    while many[t + 1 + ahead] > few[t + 1]:
        t += 1
    return np.concatenate((many[: t + ahead + 1], few[t + 1 :]))
