"""The report of GPTQ about a layer."""

from __future__ import annotations

from typing import NamedTuple


class GptqReport(NamedTuple):
    """Loss, damping and rank of a layer that GPTQ quantized."""

    loss: float
    """``trace(D (H + damping) D^T)`` for ``D = W - Q``, the loss that GPTQ descends."""
    percdamp: float
    """Damping as a fraction of the mean of the Hessian's diagonal: the argument, or what it grew to."""
    damping: float
    """Number that was added to the diagonal of the Hessian."""
    tries: int
    """Number of factorisations."""
    smallest_pivot: float
    """Least pivot of the damped Hessian, as a fraction of the mean of the Hessian's diagonal: one
    near `percdamp` is a direction without inputs, positive only by damping."""
    dead: int
    """Input channels that no token excited; their weights became 0."""
    effective_rank: float
    """Number of independent channels that would vary as much together: see `methods.solver`."""
