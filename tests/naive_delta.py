"""The gated delta rule and its convolution in float64 loops; imports nothing of ours."""

from __future__ import annotations

import math

import numpy as np


def causal_convolution(x, taps):
    """Sums over the last positions of a sequence [T, C], with taps [C, W]."""
    length, channels = x.shape
    width = taps.shape[1]
    result = np.zeros((length, channels))
    for t in range(length):
        for w in range(width):
            if t - w >= 0:
                result[t] += taps[:, width - 1 - w] * x[t - w]
    return result


def delta_rule(queries, keys, values, decays, rates, slopes, biases):
    """What a sequence's heads read: [T, H', D] twice, [T, H, V], [T, H] twice and [H] twice.

    Without rates a token writes its value at the rate of its decay, as in Mamba 2.
    """
    length, heads, width = values.shape
    group = heads // keys.shape[1]
    result = np.empty((length, heads, width))
    for h in range(heads):
        memory = np.zeros((keys.shape[2], width))
        for t in range(length):
            key, query = keys[t, h // group], queries[t, h // group]
            opened = math.log(1 + math.exp(decays[t, h] + biases[h]))
            memory = memory * math.exp(-math.exp(slopes[h]) * opened)
            if rates is None:
                memory = memory + np.outer(key, opened * values[t, h])
            else:
                rate = 1 / (1 + math.exp(-rates[t, h]))
                memory = memory + np.outer(key, rate * (values[t, h] - memory.T @ key))
            result[t, h] = memory.T @ query
    return result
