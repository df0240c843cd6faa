"""The operations as float64 loops, written from their definitions. Imports nothing of the package."""

import math

import numpy as np


def awq_channel_scores(activations, weights):
    """score[j] = mean_i(max_n |a[n, j]| * |w[i, j]|)."""
    a, w = np.asarray(activations, np.float64), np.asarray(weights, np.float64)
    scores = np.empty(a.shape[1])
    for j in range(a.shape[1]):
        scale = 0.0
        for n in range(a.shape[0]):
            magnitude = abs(a[n, j])
            if math.isnan(magnitude) or magnitude > scale:
                scale = magnitude
            if math.isnan(scale):
                break
        total = 0.0
        for i in range(w.shape[0]):
            total += scale * abs(w[i, j])
        scores[j] = total / w.shape[0]
    return scores


def fisher_information(gradients):
    """mean_n(g[n, i] ** 2)."""
    g = np.asarray(gradients, np.float64)
    information = np.empty(g.shape[1])
    for i in range(g.shape[1]):
        total = 0.0
        for n in range(g.shape[0]):
            total += g[n, i] * g[n, i]
        information[i] = total / g.shape[0]
    return information


def gptq_hessian_update(hessian, x_block, alpha=None, beta=1.0):
    """Beta * H + alpha * sum_b x_b x_b^T, with alpha = 2 / B by default."""
    h, x = np.asarray(hessian, np.float64), np.asarray(x_block, np.float64)
    alpha = 2.0 / len(x) if alpha is None else alpha
    updated = np.empty_like(h)
    for i in range(len(h)):
        for j in range(len(h)):
            total = 0.0
            for b in range(len(x)):
                total += x[b, i] * x[b, j]
            updated[i, j] = beta * h[i, j] + alpha * total
    return updated


def gptq_inverse_hessian(hessian, percdamp=0.01):
    """Upper U with U^T U = (H + damping)^-1, by inversion and the Cholesky recurrence."""
    h = np.array(hessian, np.float64)
    size = len(h)
    damping = percdamp * sum(h[j, j] for j in range(size)) / size
    for j in range(size):
        h[j, j] = 1.0 if h[j, j] == 0 else h[j, j] + damping
    inverse = np.linalg.inv(h)
    upper = np.zeros_like(h)
    for i in range(size):
        rest = inverse[i, i:] - upper[:i, i] @ upper[:i, i:]
        upper[i, i:] = rest / math.sqrt(rest[0])
    return upper


def group_grid(weights, bits, symmetric, store=float, full_range=False):
    """Scale and zero point of one group; `store` rounds the scale to its storage type."""
    levels = 2**bits - 1
    low, high = min(0.0, *weights), max(0.0, *weights)
    scale = 2 * max(-low, high) / levels if symmetric else (high - low) / levels
    if full_range:  # the largest magnitude is the least code, -2 ** (bits - 1), times the scale
        scale = (low if -low >= high else high) / -(2 ** (bits - 1))
    scale = float(store(scale if scale != 0 else 1.0))
    zero = 0 if symmetric else min(max(round(-low / scale), 0), levels)
    return scale, zero


def code(weight, scale, zero, bits, symmetric):
    """The nearest code, ties to even (Python's round), clipped to the grid's ends."""
    least, greatest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    return min(max(round(weight / scale) + zero, least), greatest)


def round_to_nearest(weight, bits, group_size, symmetric, store=float):
    """Codes, scales and zero points with no compensation."""
    return gptq_quantize_column(
        weight, np.eye(np.shape(weight)[1]), bits, group_size, symmetric, store
    )


def gptq_quantize_column(weight, h_inv, bits, group_size, symmetric, store=float):
    """Codes, scales, zero points and values, column by column; `h_inv` is the upper factor U."""
    w = np.array(weight, np.float64)
    u = np.asarray(h_inv, np.float64)
    rows, channels = w.shape
    codes = np.empty((rows, channels), np.int64)
    values = np.empty((rows, channels))
    scales = np.empty((rows, channels // group_size))
    zeros = np.empty((rows, channels // group_size))
    for i in range(rows):
        for j in range(channels):
            g = j // group_size
            if j % group_size == 0:
                group = [float(v) for v in w[i, j : j + group_size]]
                scales[i, g], zeros[i, g] = group_grid(group, bits, symmetric, store)
            codes[i, j] = code(w[i, j], scales[i, g], int(zeros[i, g]), bits, symmetric)
            values[i, j] = (codes[i, j] - zeros[i, g]) * scales[i, g]
            error = (w[i, j] - values[i, j]) / u[j, j]
            w[i, j + 1 :] -= error * u[j, j + 1 :]
    return codes, scales, zeros, values


def proxy_loss(weight, values, hessian):
    """trace((W - Q) H (W - Q)^T)."""
    d = np.asarray(weight, np.float64) - np.asarray(values, np.float64)
    return float(np.einsum("ij,jk,ik->", d, np.asarray(hessian, np.float64), d))


def draw(scores, seed):
    """Entry with the largest ``s - log(-log u)`` of each row, u by SplitMix64 of (row, entry)."""
    found = []
    for i, row in enumerate(np.asarray(scores, np.float64)):
        largest, chosen = -math.inf, 0
        for j, score in enumerate(row):
            own = score - math.log(-math.log(unit(_mixed(seed, (i << 32) | j))))
            if own > largest:
                largest, chosen = own, j
        found.append(chosen)
    return np.array(found)


def unit(bits):
    """Number between 0 and 1 of 64 bits: the highest 52, and a half."""
    return ((bits >> 12) + 0.5) / 2**52


def _mixed(seed, counter):
    """SplitMix64's output for the counter-th step of a state."""
    mask = 2**64 - 1
    z = (seed + 0x9E3779B97F4A7C15 * (counter + 1)) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31
