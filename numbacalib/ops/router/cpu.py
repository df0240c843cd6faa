"""CPU kernel of the router."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from numbacalib.runtime.jit import kernel
from numbacalib.spec.router import Routing, route_token


def route(scores: NDArray, routing: Routing, bias: NDArray | None) -> tuple[NDArray, NDArray]:
    """See `numbacalib.ops.router.route`."""
    count = len(scores)
    experts = np.empty((count, routing.experts), np.int64)
    weights = np.empty((count, routing.experts), np.float32)
    numbers = routing.numbers(bias is not None)
    if bias is None:
        bias = np.empty(0, np.float32)
    memory = np.empty_like(scores), np.empty((count, routing.groups), np.float32)
    _route(scores, bias, *memory, numbers, experts, weights)
    return experts, weights


@kernel
def _route(scores, bias, choice, totals, numbers, experts, weights):
    """Split: one task a token."""
    for i in prange(len(scores)):
        route_token(scores[i], bias, choice[i], totals[i], numbers, experts[i], weights[i])
