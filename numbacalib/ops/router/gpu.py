"""GPU kernel of the router."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbacalib.runtime import device
from numbacalib.runtime.device import cuda
from numbacalib.runtime.launch import launch
from numbacalib.spec.router import Routing, route_token

THREADS = device.sized(128, simulated=4)


def route(scores: Any, routing: Routing, bias: Any) -> tuple[Any, Any]:
    """See `numbacalib.ops.router.route`."""
    count = scores.shape[0]
    experts = device.empty((count, routing.experts), np.int64)
    weights = device.empty((count, routing.experts), np.float32)
    numbers = routing.numbers(bias is not None)
    if bias is None:
        bias = device.empty((1,), np.float32)  # never read
    memory = (
        device.empty((count, width), np.float32) for width in (scores.shape[1], routing.groups)
    )
    arguments = scores, bias, *memory, numbers, experts, weights
    launch(_route, -(-count // THREADS), THREADS, *arguments)
    return device.result(experts), device.result(weights)


@cuda.jit
def _route(scores, bias, choice, totals, numbers, experts, weights):
    """Threads: one a token."""
    i = cuda.grid(1)
    if i < scores.shape[0]:
        route_token(scores[i], bias, choice[i], totals[i], numbers, experts[i], weights[i])
