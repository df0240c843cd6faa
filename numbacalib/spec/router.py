"""Choice of a token's experts, and the weight of each.

Softmax over all experts, of which a token keeps the best: Shazeer et al. (2017), arXiv 1701.06538; with
the kept ones normalized to sum to 1: Jiang et al. (2024), arXiv 2401.04088. Sigmoid scores, a bias that
affects only the choice, and experts in groups of which the best are kept: DeepSeek-AI (2024), arXiv
2412.19437, equations 12 to 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from numbacalib.spec.activations import sigmoid
from numbacalib.spec.exponential import exp

LOWEST = np.float32(-3.4e38)
"""Below any score that is chosen."""
LEAST_SUM = np.float32(1e-20)
"""Added to the sum that kept sigmoids are divided by: all may be 0."""


class RoutingNumbers(NamedTuple):
    """A `Routing` in the form that kernels take."""

    sigmoid: bool
    biased: bool
    normalized: bool
    factor: np.float32
    kept_groups: int
    group_best: int


@dataclass(frozen=True)
class Routing:
    """Settings of a router: the use of its scores."""

    experts: int
    """Experts of each token, at least 1."""
    scoring: str = "softmax"
    """"softmax" over all experts, or "sigmoid" of each."""
    normalized: bool = True
    """Normalize the weights of a token's experts to sum to 1."""
    factor: float = 1.0
    """Factor of all weights."""
    groups: int = 1
    """Runs of experts of equal length; a token's experts come only from the best runs."""
    kept_groups: int = 1
    group_best: int = 1
    """Number of a group's best scores whose sum is the group's score."""

    def numbers(self, biased: bool) -> RoutingNumbers:
        """Return the settings for kernels; `biased` if the router has a bias."""
        return RoutingNumbers(
            self.scoring == "sigmoid",
            biased,
            self.normalized,
            np.float32(self.factor),
            self.kept_groups,
            self.group_best,
        )


@register_jitable
def next_best(scores, begin, end, last):
    """Index of the best of ``scores[begin:end]`` after the index `last`, which is -1 for the first.

    Scores fall and equal ones are ordered by index, so that earlier choices need not be recorded. Among
    NaNs, which are not ordered, it may return `last` again.
    """
    best = -1
    for j in range(begin, end):
        after = last < 0 or scores[j] < scores[last] or (scores[j] == scores[last] and j > last)
        if after and (best < 0 or scores[j] > scores[best]):
            best = j
    return best if best >= 0 else max(last, begin)


@register_jitable
def leave_out_groups(choice, totals, numbers):
    """Set scores of all groups but the best to `LOWEST`; `totals` [groups] is scratch for their scores."""
    count = totals.shape[0]
    size = choice.shape[0] // count
    for g in range(count):
        total, last = np.float32(0), -1
        for _ in range(numbers.group_best):
            last = next_best(choice, g * size, (g + 1) * size, last)
            total += choice[last]
        totals[g] = total
    last = -1
    for _ in range(numbers.kept_groups):
        last = next_best(totals, 0, count, last)
    for g in range(count):
        if totals[g] < totals[last] or (totals[g] == totals[last] and g > last):
            for j in range(g * size, (g + 1) * size):
                choice[j] = LOWEST


@register_jitable
def route_token(scores, bias, choice, totals, numbers, experts, weights):
    """Choose a token's experts [k], best first, and find their weights [k], from its scores [E].

    `choice` [E] and `totals` [groups] are scratch. Without a bias, scores are compared instead of their
    softmax, which has the same order.
    """
    count = scores.shape[0]
    largest = scores[next_best(scores, 0, count, -1)]
    whole = np.float32(0)
    if not numbers.sigmoid and (numbers.biased or not numbers.normalized):
        for j in range(count):
            whole += exp(scores[j] - largest)
    for j in range(count):
        if numbers.sigmoid:
            choice[j] = sigmoid(scores[j])
        else:
            choice[j] = exp(scores[j] - largest) / whole if numbers.biased else scores[j]
        if numbers.biased:
            choice[j] += bias[j]
    if totals.shape[0] > 1:
        leave_out_groups(choice, totals, numbers)
    last = -1
    total = np.float32(0)
    for k in range(experts.shape[0]):
        last = next_best(choice, 0, count, last)
        experts[k] = last
        weights[k] = sigmoid(scores[last]) if numbers.sigmoid else exp(scores[last] - largest)
        total += weights[k]
    if not numbers.normalized:
        total = np.float32(1) if numbers.sigmoid else whole
    elif numbers.sigmoid:
        total += LEAST_SUM
    for k in range(experts.shape[0]):
        weights[k] = weights[k] / total * numbers.factor
