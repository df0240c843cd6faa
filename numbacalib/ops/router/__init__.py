"""The router of a mixture of experts: the experts of each token."""

from __future__ import annotations

from typing import Any

from numbacalib.ops.router import cpu
from numbacalib.runtime import checks
from numbacalib.runtime.backend import call
from numbacalib.spec.router import Routing


def _gpu() -> Any:
    """Return the CUDA twin."""
    from numbacalib.ops.router import gpu

    return gpu


def route(scores: Any, routing: Routing, bias: Any = None) -> tuple[Any, Any]:
    """Choose each token's experts, best first, and find their weights.

    Parameters
    ----------
    scores : float32 array [N, E], C-contiguous
        The router's logits.
    routing : Routing
    bias : float32 array [E], optional
        Added to sigmoids, or to the softmax, for the choice only.

    Returns
    -------
    experts : int64 array [N, k]
        Of equal scores the one with the lower index goes first.
    weights : float32 array [N, k]
    """
    with call(cpu, _gpu, scores=scores, bias=bias) as (kernels, scores, bias):
        _, count = checks.matrix("scores", scores, ("N", "E"))
        checks.integer("routing.experts", routing.experts, 1, count)
        if bias is not None:
            checks.vector("bias", bias, count)
        return kernels.route(scores, routing, bias)
