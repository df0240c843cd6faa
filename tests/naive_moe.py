"""A mixture of experts in float64 loops, from the definitions; imports nothing of ours."""

from __future__ import annotations

import math

import numpy as np


def best(values, count):
    """Indices of the largest values, equal ones in their order."""
    return sorted(range(len(values)), key=lambda j: (-values[j], j))[:count]


def route(
    scores,
    experts,
    scoring="softmax",
    normalized=True,
    factor=1.0,
    groups=1,
    kept_groups=1,
    group_best=1,
    bias=None,
):
    """A token's experts and their weights, from its router's logits."""
    scores = [float(score) for score in scores]
    if scoring == "sigmoid":
        probabilities = [1 / (1 + math.exp(-score)) for score in scores]
    else:
        exponentials = [math.exp(score - max(scores)) for score in scores]
        probabilities = [value / sum(exponentials) for value in exponentials]
    choice = list(probabilities)
    if bias is not None:
        choice = [value + float(b) for value, b in zip(choice, bias, strict=True)]
    if groups > 1:
        size = len(scores) // groups
        totals = []
        for g in range(groups):
            own = choice[g * size : (g + 1) * size]
            totals.append(sum(own[j] for j in best(own, group_best)))
        kept = best(totals, kept_groups)
        choice = [value if j // size in kept else -math.inf for j, value in enumerate(choice)]
    chosen = best(choice, experts)
    weights = np.array([probabilities[j] for j in chosen])
    if normalized:
        weights = weights / weights.sum()
    return chosen, weights * factor


def mixture(x, experts, weights, mlps):
    """Outputs [N, M] of tokens x [N, K]: ``sum_k weights[n, k] * mlps[experts[n, k]](x[n])``."""
    return np.array(
        [
            sum(w * mlps[e](token) for e, w in zip(own, counts, strict=True))
            for token, own, counts in zip(x, experts, weights, strict=True)
        ]
    )
