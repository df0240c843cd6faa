"""CPU kernel of the router."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from numbacalib.runtime.jit import task_kernel
from numbacalib.runtime.tasks import fetch_add
from numbacalib.spec.router import Routing, route_token

TOKENS = 16
"""Tokens of a task."""


def route(scores: NDArray, routing: Routing, bias: NDArray | None) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.router.route`."""
    count = len(scores)
    experts = np.empty((count, routing.experts), np.int64)
    weights = np.empty((count, routing.experts), np.float32)
    numbers = routing.numbers(bias is not None)
    if bias is None:
        bias = np.empty(0, np.float32)
    memory = np.empty_like(scores), np.empty((count, routing.groups), np.float32)
    _route(-(-count // TOKENS), scores, bias, memory, numbers, (experts, weights))
    return experts, weights


@task_kernel
def _route(counter, scores, bias, memory, numbers, found):
    """Split: workers take runs of tokens."""
    (choice, totals), (experts, weights) = memory, found
    first = fetch_add(counter) * TOKENS
    while first < len(scores):
        for i in range(first, min(first + TOKENS, len(scores))):
            route_token(scores[i], bias, choice[i], totals[i], numbers, experts[i], weights[i])
        first = fetch_add(counter) * TOKENS
