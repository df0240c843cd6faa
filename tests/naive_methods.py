"""The methods as float64 loops, written from their definitions. Imports nothing of the package."""

import itertools
from fractions import Fraction

import naive
import numpy as np


def group_range(weights, bits, symmetric, store=float, search=None, importance=None):
    """Scale and zero point of one group; `search` is (points, least, norm, ...) of the range search."""
    if search is None:
        return naive.group_grid(weights, bits, symmetric, store)
    points, least, norm, *full_range = search
    best = None
    for i in range(max(1, round((1 - least) * points))):
        share = 1 - i / points
        ends = [share * min(0.0, *weights), share * max(0.0, *weights)]
        scale, zero = naive.group_grid(ends, bits, symmetric, store, *full_range)
        error = group_error(weights, scale, zero, bits, symmetric, norm, importance)
        if best is None or error < best[0]:
            best = error, scale, zero
    return best[1:]


def group_error(weights, scale, zero, bits, symmetric, norm, importance=None):
    """sum_j importance[j] * |w[j] - value[j]| ** norm."""
    total = 0.0
    for j, weight in enumerate(weights):
        value = (naive.code(weight, scale, int(zero), bits, symmetric) - zero) * scale
        factor = 1.0 if importance is None else importance[j]
        total += factor * abs(weight - value) ** norm
    return total


def gptq(
    weight,
    hessian,
    bits,
    group_size,
    symmetric,
    order=None,
    static_groups=False,
    store=float,
    percdamp=0.01,
    search=None,
    importance=None,
):
    """Codes and values, both [M, K], with the columns quantized in `order`."""
    w = np.array(weight, np.float64)
    rows, channels = w.shape
    order = list(range(channels)) if order is None else [int(j) for j in order]
    u = naive.gptq_inverse_hessian(np.asarray(hessian, np.float64)[np.ix_(order, order)], percdamp)
    importance = np.broadcast_to(1.0 if importance is None else importance, w.shape)
    codes, values = np.empty(w.shape, np.int64), np.empty(w.shape)
    for i in range(rows):
        grids = {}

        def find(group, members, i=i, grids=grids):
            weights = [float(w[i, j]) for j in members]
            factors = [float(importance[i, j]) for j in members]
            grids[group] = group_range(weights, bits, symmetric, store, search, factors)

        if static_groups:
            for group in range(channels // group_size):
                find(group, range(group * group_size, (group + 1) * group_size))
        for position, j in enumerate(order):
            group = j // group_size if static_groups else position // group_size
            if group not in grids:
                find(group, order[position : position + group_size])
            scale, zero = grids[group]
            codes[i, j] = naive.code(w[i, j], scale, int(zero), bits, symmetric)
            values[i, j] = (codes[i, j] - zero) * scale
            error = (w[i, j] - values[i, j]) / u[position, position]
            w[i, order[position + 1 :]] -= error * u[position, position + 1 :]
    return codes, values


def descended_codes(weight, codes, scales, zeros, group_of, bits, hessian, passes):
    """Each code in turn the best of all that there are, the row's others as they are by then."""
    scales, zeros = (np.asarray(each, np.float64)[:, group_of] for each in (scales, zeros))
    codes = np.asarray(codes, np.float64)
    for _ in range(passes):
        for j in range(codes.shape[1]):
            pulls = (weight - (codes - zeros) * scales) @ hessian[:, j]
            steps = (np.arange(1 << bits) - codes[:, j, None]) * scales[:, j, None]
            changes = steps * (steps * hessian[j, j] - 2 * pulls[:, None])
            best = changes.argmin(axis=1)
            better = changes.min(axis=1) < 0
            codes[:, j] = np.where(better, best, codes[:, j])
    return codes


def descending(diagonal):
    """Channels by falling diagonal, equal ones as they come."""
    return sorted(range(len(diagonal)), key=lambda j: -diagonal[j])


def group_aware(diagonal, group_size):
    """Groups by their largest entry, and the channels within each, both falling."""
    groups = range(len(diagonal) // group_size)
    members = [[g * group_size + j for j in range(group_size)] for g in groups]
    ranked = sorted(groups, key=lambda g: -max(diagonal[j] for j in members[g]))
    return [j for g in ranked for j in sorted(members[g], key=lambda j: -diagonal[j])]


def awq_loss(weights, hessian, scales, bits, group_size, symmetric, store=float):
    """Sum over layers of trace(D H D^T), D = W - Q(W * s) / s."""
    total = 0.0
    for weight in weights:
        scaled = np.asarray(weight, np.float64) * scales
        values = naive.round_to_nearest(scaled, bits, group_size, symmetric, store)[3]
        total += naive.proxy_loss(weight, values / scales, hessian)
    return total


def awq_candidates(weights, magnitude, group_size, weight_term, points):
    """Exponents and channel scales: s = a^r, or a^r / w^(1-r), normalized; the identity first.

    Scales are rounded to float32, as they are kept: the largest weight of a symmetric group is a tie.
    """
    channels = len(magnitude)
    mean = np.zeros(channels)
    rows = 0
    for weight in weights:
        for row in np.abs(np.asarray(weight, np.float64)):
            rows += 1
            for j in range(channels):
                start = j - j % group_size
                mean[j] += row[j] / max(row[start : start + group_size])
    mean /= rows
    yield None, np.ones(channels)
    for i in range(points):
        r = i / points
        scales = np.asarray(magnitude, np.float64) ** r
        if weight_term:
            scales = scales / mean ** (1 - r)
        scales = np.maximum(scales, 1e-4)
        yield r, (scales / np.sqrt(max(scales) * min(scales))).astype(np.float32)


def awq_clip(weight, hessian, bits, group_size, symmetric, points, least, store=float):
    """Values [M, K], each group on the clipped grid with the least d H_gg d^T."""
    w = np.asarray(weight, np.float64)
    values = np.empty_like(w)
    for i in range(len(w)):
        for start in range(0, w.shape[1], group_size):
            members = slice(start, start + group_size)
            group, block = w[i, members], np.asarray(hessian, np.float64)[members, members]
            best = np.inf
            for step in range(max(1, round((1 - least) * points))):
                limit = (1 - step / points) * max(abs(group))
                clipped = [min(max(v, -limit), limit) for v in group.tolist()]
                scale, zero = naive.group_grid(clipped, bits, symmetric, store)
                found = np.array(
                    [(naive.code(v, scale, zero, bits, symmetric) - zero) * scale for v in group]
                )
                error = (group - found) @ block @ (group - found)
                if error < best:
                    best, values[i, members] = error, found
    return values


def cluster_error(values, weights):
    """Weighted squared error of values about their weighted mean; 0 where nothing weighs."""
    total = sum(weights)
    if total == 0:
        return 0.0
    mean = sum(w * x for w, x in zip(weights, values, strict=True)) / total
    return sum(w * (x - mean) ** 2 for w, x in zip(weights, values, strict=True))


def cluster_errors(pairs):
    """The same of the first value, the first two, and so on: mean and error one by one (Welford 1962)."""
    total = mean = error = 0.0
    for x, w in pairs:
        if w > 0:
            total += w
            step = x - mean
            mean += step * w / total
            error += w * step * (x - mean)
        yield error


def kmeans_error(row, weights, clusters):
    """Least error of all ways to cut the sorted row into at most `clusters` runs: every one tried."""
    pairs = sorted(zip(row, weights, strict=True))
    least = np.inf
    for cuts in itertools.combinations_with_replacement(range(len(row) + 1), clusters - 1):
        ends = [0, *cuts, len(row)]
        parts = [pairs[a:b] for a, b in itertools.pairwise(ends) if a < b]
        least = min(least, sum(cluster_error(*zip(*part, strict=True)) for part in parts))
    return least


def kmeans_error_exact(row, weights, clusters):
    """Least error of cuts of the sorted row, and the error of any run of it, as fractions: not rounded."""
    pairs = sorted((Fraction(x), Fraction(w)) for x, w in zip(row, weights, strict=True) if w > 0)
    sums = [(Fraction(0),) * 3]
    for x, w in pairs:
        sums.append(tuple(map(sum, zip(sums[-1], (w, w * x, w * x * x), strict=True))))

    def error(a, b):
        mass, moment, energy = (high - low for low, high in zip(sums[a], sums[b], strict=True))
        return energy - moment * moment / mass

    n = len(pairs)
    least = [Fraction(0)] + [error(0, b) for b in range(1, n + 1)]
    for _ in range(clusters - 1):
        least = [Fraction(0)] + [
            min(least[a] + error(a, b) for a in range(b)) for b in range(1, n + 1)
        ]
    return least[n]


def kmeans_error_recurrence(row, weights, clusters):
    """The same by the recurrence over the last run's first value, nothing left out."""
    pairs = sorted(zip(row, weights, strict=True))
    n = len(pairs)
    runs = [list(cluster_errors(pairs[a:])) for a in range(n)]
    least = [0.0] + [np.inf] * n
    for _ in range(clusters):
        least = [0.0] + [
            min(least[a] + runs[a][b - a - 1] for a in range(b)) for b in range(1, n + 1)
        ]
    return least[n]


def fixed_grids(weight, hessian, scales, zeros, bits, order=None, percdamp=0.01):
    """Codes and values, both [M, K], of GPTQ on given grids [M, G]; round-to-nearest without a Hessian.

    The zero's whole part is added after rounding, which ties to even.
    """
    w = np.array(weight, np.float64)
    rows, channels = w.shape
    size = channels // np.shape(scales)[1]
    order = list(range(channels)) if order is None else [int(j) for j in order]
    u = np.eye(channels)
    if hessian is not None:
        ordered = np.asarray(hessian, np.float64)[np.ix_(order, order)]
        u = naive.gptq_inverse_hessian(ordered, percdamp)
    codes, values = np.empty(w.shape, np.int64), np.empty(w.shape)
    for i in range(rows):
        for position, j in enumerate(order):
            scale, zero = float(scales[i][j // size]), float(zeros[i][j // size])
            whole = np.rint(zero)
            code = np.rint(w[i, j] / scale + (zero - whole)) + whole
            codes[i, j] = min(max(code, 0), 2**bits - 1)
            values[i, j] = (codes[i, j] - zero) * scale
            error = (w[i, j] - values[i, j]) / u[position, position]
            w[i, order[position + 1 :]] -= error * u[position, position + 1 :]
    return codes, values
